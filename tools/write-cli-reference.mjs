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

let page = readFileSync(path, "utf8");
const top = await help([]);
const names = [...top.matchAll(/^ {2}([a-z]+) {2,}/gm)].map(([, name]) => name ?? "");
for (const name of ["", ...names.filter((name) => name !== "help")]) {
  const title = `## \`coppice${name ? ` ${name}` : ""}\``;
  const text = name === "" ? top : await help([name]);
  const fence = `\`\`\`text\n${text}\n\`\`\``;
  const start = page.indexOf(`${title}\n`);
  if (start < 0) {
    page = `${page.trimEnd()}\n\n${title}\n\n${fence}\n`;
    continue;
  }
  const rest = page.slice(start).replace(/^```text\n[\s\S]*?^```$/m, () => fence);
  page = page.slice(0, start) + rest;
}
writeFileSync(path, page);
