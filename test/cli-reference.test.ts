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

/** The command and all below it, in the order of their lists. */
async function commands(words: readonly string[]): Promise<string[]> {
  const [, list = ""] = (await help(...words)).split("\nCommands:\n");
  const names = [...list.matchAll(/^ {2}([a-z][a-z-]*)/gm)].map(([, name = ""]) => name);
  const below = await Promise.all(
    names.filter((name) => name !== "help").map((name) => commands([...words, name])),
  );
  return [words.join(" "), ...below.flat()];
}

/** Command -> the text of its fence on the page. */
const documented = new Map(
  [...page.matchAll(/^## `coppice((?: [a-z-]+)*)`\n[\s\S]*?^```text\n([\s\S]*?)^```$/gm)].map(
    ([, name = "", text = ""]) => [name.trim(), text.trimEnd()],
  ),
);

describe("docs/reference/cli.md", () => {
  it("has every command", async () => {
    const names = await commands([]);
    expect(names).toContain("search");
    expect([...documented.keys()]).toEqual(names);
  });

  // `node tools/write-cli-reference.mjs` brings the page up to date.
  it.each([...documented.keys()])("coppice %s prints what the page shows", async (name) => {
    expect(await help(...name.split(" ").filter((word) => word !== ""))).toBe(documented.get(name));
  });
});
