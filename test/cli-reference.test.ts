import { readFileSync } from "node:fs";
import { Writable } from "node:stream";
import { runCli } from "coppice";
import { describe, expect, it } from "vitest";

const page = readFileSync(new URL("../docs/reference/cli.md", import.meta.url), "utf8");

/** What a command line prints to stdout, as a terminal of no size and no colour gets it. */
async function help(...words: string[]): Promise<string> {
  let text = "";
  const sink = new Writable({
    write(chunk, _, done) {
      text += String(chunk);
      done();
    },
  });
  const io = { stdout: sink, stderr: sink, stdin: process.stdin, env: { NO_COLOR: "1" }, cwd: process.cwd() };
  expect(await runCli([...words, "--help"], io)).toBe(0);
  return text.trimEnd();
}

/** Command -> the text of its fence on the page. */
const documented = new Map(
  [...page.matchAll(/^## `coppice( [a-z]+)?`\n[\s\S]*?^```text\n([\s\S]*?)^```$/gm)].map(
    ([, name = "", text = ""]) => [name.trim(), text.trimEnd()],
  ),
);

describe("docs/reference/cli.md", () => {
  it("has every command", async () => {
    const listed = [...(await help()).matchAll(/^ {2}([a-z]+) {2,}/gm)].map(([, name]) => name ?? "");
    expect(listed).toContain("search");
    expect([...documented.keys()]).toEqual(["", ...listed.filter((name) => name !== "help")]);
  });

  // `node tools/write-cli-reference.mjs` brings the page up to date.
  it.each([...documented.keys()])("coppice %s prints what the page shows", async (name) => {
    expect(await help(...(name === "" ? [] : [name]))).toBe(documented.get(name));
  });
});
