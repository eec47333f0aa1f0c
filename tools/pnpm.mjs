import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

const windows = process.platform === "win32";
/** The pinned package manager, `pnpm@x.y.z`, as package.json names it. */
const pinned = JSON.parse(readFileSync(join(root, "package.json"), "utf8")).packageManager;

const env = {
  ...process.env,
  ONNXRUNTIME_NODE_INSTALL: "skip",
  TURBO_TELEMETRY_DISABLED: "1",
  DO_NOT_TRACK: "1",
  PATH: `${join(root, "node_modules", ".bin")}${delimiter}${process.env.PATH}`,
};

/**
 * Runs a program with this terminal's input and output and ends this process when it fails.
 * @param {string} program a program on the PATH, or one that the workspace installed
 * @param {readonly string[]} args
 */
export function run(program, args) {
  const command = windows
    ? [program, ...args].map((word) => `"${word.replaceAll('"', '\\"')}"`).join(" ")
    : program;
  const result = spawnSync(command, windows ? [] : args, {
    cwd: root,
    env,
    stdio: "inherit",
    shell: windows,
  });
  if (result.error) throw result.error;
  if (result.status !== 0) process.exit(result.status ?? 1);
}

const found = spawnSync("pnpm", ["--version"], { cwd: root, encoding: "utf8", shell: windows });
const pinnedOnPath = `pnpm@${found.stdout?.trim()}` === pinned;

/**
 * Runs the pinned pnpm: the installed one when it has that version, else through npx.
 * @param {readonly string[]} args
 */
export function pnpm(args) {
  if (pinnedOnPath) run("pnpm", args);
  else run("npx", ["--yes", pinned, ...args]);
}
