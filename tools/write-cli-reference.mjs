// Writes the --help text of every command into docs/reference/cli.md; prose around the fences stays as it is.
// Usage: node tools/write-cli-reference.mjs, after a build
import { readFileSync, writeFileSync } from "node:fs";
import { Writable } from "node:stream";

const { runCli } = await import(new URL("../packages/cli/dist/index.js", import.meta.url).href);
const path = new URL("../docs/reference/cli.md", import.meta.url);

/** @param {readonly string[]} words */
async function help(words) {
  let text = "";
  const sink = new Writable({
    write(chunk, _, done) {
      text += String(chunk);
      done();
    },
  });
  const io = { stdout: sink, stderr: sink, stdin: process.stdin, env: { NO_COLOR: "1" }, cwd: process.cwd() };
  await runCli([...words, "--help"], io);
  return text.trimEnd();
}

/**
 * The commands that a help text lists, without `help`.
 * @param {string} text
 */
function listed(text) {
  const [, list = ""] = text.split("\nCommands:\n");
  return [...list.matchAll(/^ {2}([a-z][a-z-]*)/gm)]
    .map(([, name = ""]) => name)
    .filter((name) => name !== "help");
}

let page = readFileSync(path, "utf8");
/** Where the section of the command before ends: a command that is new goes there. */
let end = page.length;

/** @param {readonly string[]} words */
async function write(words) {
  const title = `## \`${["coppice", ...words].join(" ")}\``;
  const text = await help(words);
  const fence = `\`\`\`text\n${text}\n\`\`\``;
  let start = page.indexOf(`${title}\n`);
  if (start < 0) {
    page = `${page.slice(0, end).trimEnd()}\n\n${title}\n\n${fence}\n\n${page.slice(end)}`.trimEnd();
    page += "\n";
    start = page.indexOf(`${title}\n`);
  } else {
    const rest = page.slice(start).replace(/^```text\n[\s\S]*?^```$/m, () => fence);
    page = page.slice(0, start) + rest;
  }
  const next = page.indexOf("\n## ", start + 1);
  end = next < 0 ? page.length : next + 1;
  for (const name of listed(text)) await write([...words, name]);
}

await write([]);
writeFileSync(path, page);
