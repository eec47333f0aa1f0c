import { join } from "node:path";
import { Writable } from "node:stream";
import { stripVTControlCharacters } from "node:util";
import pc from "picocolors";
import { describe, expect, it } from "vitest";
import { byteCount, settings, tokenIds } from "../src/options.js";
import { formatDuration, formatTable, shellLine } from "../src/terminal/format.js";
import { toJson } from "../src/terminal/output.js";
import { printable } from "../src/terminal/printable.js";
import { LiveProgress, PlainProgress } from "../src/terminal/progress.js";
import { coppice, start } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const step = { stage: "searching", done: 1, total: 4, unit: "evaluations" };

function terminal(columns: number) {
  let text = "";
  const stream = Object.assign(
    new Writable({
      write(chunk, _, done) {
        text += String(chunk);
        done();
      },
    }),
    { isTTY: true, columns },
  );
  return { stream, text: () => text };
}

describe("progress", () => {
  it("writes plain lines for the begin, the end, and little between", () => {
    const lines: string[] = [];
    const view = new PlainProgress((line) => lines.push(line));
    for (let done = 1; done <= 4; done++)
      view.progress({ ...step, done, note: `best 0.${done}`, etaMs: 65_000 });
    expect(lines).toEqual([
      "searching: 1 of 4 evaluations, best 0.1, 1 min 5 s left\n",
      "searching: 4 of 4 evaluations, best 0.4\n",
    ]);
  });

  it("redraws one line that fits a narrow terminal", () => {
    const { stream, text } = terminal(40);
    const view = new LiveProgress(stream, pc.createColors(false));
    view.progress({ ...step, note: "a note that is much too long for this terminal" });
    view.settle();
    const lines = stripVTControlCharacters(text().replaceAll("\u001b[2K", "\n")).split("\n").filter(Boolean);
    expect(lines.every((line) => line.length <= 39)).toBe(true);
    expect(text().endsWith("\n")).toBe(true);
  });
});

describe("formatting", () => {
  it("writes durations as people say them", () => {
    expect([400, 59_400, 61_000, 7_260_000].map(formatDuration)).toEqual([
      "0 s",
      "59 s",
      "1 min 1 s",
      "2 h 1 min",
    ]);
  });

  it("aligns columns without rules", () => {
    expect(
      formatTable(
        ["name", "n"],
        [
          ["a", "1"],
          ["long", "22"],
        ],
        [1],
      ),
    ).toBe("name   n\na      1\nlong  22");
  });

  it("quotes what a shell would read otherwise", () => {
    expect(shellLine(["a", "b c", "it's", "x=1"])).toBe("a 'b c' 'it'\\''s' x=1");
  });

  it("prints typed arrays as arrays and no NaN", () => {
    expect(toJson({ a: Float32Array.of(1, 2), b: [Number.NaN] })).toBe('{"a":[1,2],"b":[null]}');
  });

  it("disarms escape sequences", () => {
    expect(printable("a\u001b[2Jb\u202ec\n\td")).toBe("a\\u001b[2Jb\\u202ec\n\td");
  });
});

describe("option parsers", () => {
  it("read what they say", () => {
    expect([..."500MB 2GiB 1.5k 7".split(" ")].map(byteCount)).toEqual([5e8, 2 * 1024 ** 3, 1500, 7]);
    expect(settings("a=1", settings("b=x=y"))).toEqual({ a: 1, b: "x=y" });
    expect(settings('rates={"sigma":0.1}')).toEqual({ rates: { sigma: 0.1 } });
    expect(tokenIds("4,5", tokenIds("1,2,3"))).toEqual([Int32Array.of(1, 2, 3), Int32Array.of(4, 5)]);
  });

  it.each([
    [byteCount, "0"],
    [byteCount, "2XB"],
    [settings, "=1"],
    [settings, "__proto__=1"],
    [tokenIds, "1,,2"],
    [tokenIds, "-1"],
    [tokenIds, "3000000000"],
  ])("refuse the rest", (parser, text) => {
    expect(() => parser(text)).toThrow(/expected/);
  });
});

describe("the process", () => {
  const work = workshop();
  const model = copyModel(join(work, "model"));
  const task = writeTask(join(work, "task.jsonl"), 12);

  it("prints its version and help to stdout", async () => {
    expect((await coppice(["--version"])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    const help = await coppice(["search", "--help"]);
    expect([help.code, help.stderr]).toEqual([0, ""]);
    expect(help.stdout).toMatch(/Examples:\n {2}\$ coppice search/);
    expect((await coppice(["help", "eval"])).stdout).toMatch(/^Usage: coppice eval/);
    expect(await coppice([])).toMatchObject({ code: 2, stdout: "" });
  });

  it("keeps stdout to data and stderr to messages", async () => {
    const json = await coppice(["eval", model, "--task", task, "--json"]);
    expect(json.stdout.split("\n")).toHaveLength(2);
    json.json();
    expect(json.stderr).toMatch(/^evaluating: /);
    expect((await coppice(["eval", model, "--task", task, "--quiet"])).stderr).toBe("");
    const log = await coppice(["eval", model, "--task", task, "--log-format", "json"]);
    for (const line of log.stderr.trim().split("\n")) expect(JSON.parse(line)).toHaveProperty("event");
  });

  it("colours only when asked to", async () => {
    const failing = ["inspect", join(work, "none")];
    expect((await coppice(failing)).stderr).not.toContain("\u001b");
    expect((await coppice(failing, { env: { FORCE_COLOR: "1" } })).stderr).toContain("\u001b[31m");
    expect((await coppice(failing, { env: { FORCE_COLOR: "1", NO_COLOR: "1" } })).stderr).not.toContain(
      "\u001b",
    );
  });

  it("shows stacks only when asked to", async () => {
    const failing = ["inspect", join(work, "none")];
    expect((await coppice(failing)).stderr).not.toMatch(/^ {4}at /m);
    expect((await coppice([...failing, "--debug"])).stderr).toMatch(/^ {4}at /m);
    expect((await coppice(failing, { env: { COPPICE_DEBUG: "1" } })).stderr).toMatch(/^ {4}at /m);
  });

  it("survives a reader that closes the pipe", async () => {
    const ids = Array.from({ length: 200 }, (_, i) => i).join(",");
    const { child, done } = start(["logits", model, "--ids", ids, "--all", "--json"]);
    child.stdout?.once("data", () => child.stdout?.destroy());
    const { code, stderr } = await done;
    expect(code).toBe(0);
    expect(stderr).not.toMatch(/EPIPE|Error/);
  });
});
