// The way in for a machine that has only Node and npm: installs what is missing, builds, then runs one command.
// Usage: node tools/bootstrap.mjs <command> [arguments]
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`Coppice needs Node 20.19 or newer; this is Node ${process.versions.node}.`);
  process.exit(1);
}

const { pnpm, root, run } = await import("./pnpm.mjs");

/** A hash of everything that decides what an install would do. */
function wanted() {
  const hash = createHash("sha256");
  const folders = ["packages", "examples"].flatMap((parent) =>
    existsSync(join(root, parent)) ? readdirSync(join(root, parent)).map((name) => `${parent}/${name}`) : [],
  );
  const manifests = ["", "test/", ...folders.sort().map((folder) => `${folder}/`)].map(
    (at) => `${at}package.json`,
  );
  for (const file of ["pnpm-lock.yaml", "pnpm-workspace.yaml", ...manifests]) {
    if (existsSync(join(root, file))) hash.update(`${file}\n`).update(readFileSync(join(root, file)));
  }
  return hash.update(`${process.platform} ${process.arch}`).digest("hex");
}

function install() {
  const stamp = join(root, "node_modules", ".coppice-install");
  const hash = wanted();
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === hash) return;
  pnpm(["install", "--frozen-lockfile"]);
  writeFileSync(stamp, hash);
}

/** @param {readonly string[]} args */
function turbo(args) {
  pnpm(["exec", "turbo", "run", ...args, "--output-logs=errors-only"]);
}

/**
 * Builds a package and runs one of its slow checks or benches.
 * @param {string} name
 * @param {string} file
 * @param {readonly string[]} args
 */
function script(name, file, args) {
  turbo(["build", `--filter=${name}`]);
  run(process.execPath, [file, ...args]);
}

/** @type {Record<string, (args: readonly string[]) => void>} */
const commands = {
  test(args) {
    run("biome", ["ci", "--error-on-warnings", ...(process.stdout.isTTY ? [] : ["--colors=off"]), "."]);
    turbo(["build", "typecheck", "//#typecheck:root"]);
    run("vitest", ["run", ...args]);
  },
  demo: (args) => script("coppice", "packages/cli/dist/bin.js", ["demo", ...args]),
  build: (args) => turbo(["build", ...args]),
  typecheck: (args) => turbo(["typecheck", "//#typecheck:root", ...args]),
  lint: (args) => run("biome", ["check", ".", ...args]),
  format: (args) => run("biome", ["check", "--write", ".", ...args]),
  "check-search": (args) => script("coppice", "packages/cli/scripts/check-search.mjs", args),
  "check-eval": (args) => script("coppice", "packages/cli/scripts/check-eval.mjs", args),
  "check-profiles": (args) => script("coppice", "packages/cli/scripts/check-profiles.mjs", args),
  "check-attention": (args) => script("coppice", "packages/cli/scripts/check-attention.mjs", args),
  "check-bits": (args) => script("coppice", "packages/cli/scripts/check-bits.mjs", args),
  "check-layers": (args) =>
    script("@coppice/export-onnx", "packages/export-onnx/scripts/check-layers.mjs", args),
  "check-browser": (args) =>
    script("coppice-example-browser^...", "examples/browser/scripts/check-browser.mjs", args),
  "check-kills": (args) => script("coppice", "packages/cli/scripts/check-kills.mjs", args),
  "check-queue": (args) =>
    script("@coppice/executor-bullmq", "packages/executor-bullmq/scripts/many-jobs.mjs", args),
  "check-large": (args) =>
    script("@coppice/checkpoint", "packages/checkpoint/scripts/large-checkpoint.mjs", args),
  "check-calibrate": (args) => script("coppice", "packages/cli/scripts/check-calibrate.mjs", args),
  "table-criteria": (args) => script("coppice", "packages/cli/scripts/criteria-table.mjs", args),
  bench: ([name, ...args]) => dispatch(benches, name, args),
  "check-packages"(args) {
    turbo(["build"]);
    run(process.execPath, [join("tools", "check-packages.mjs"), ...args]);
  },
};

/** @type {Record<string, (args: readonly string[]) => void>} */
const benches = {
  attention: (args) => script("@coppice/backend-cpu", "packages/backend-cpu/bench/attention.mjs", args),
  batches: (args) => script("@coppice/runtime", "packages/runtime/bench/batches.mjs", args),
  decode: (args) => script("@coppice/runtime", "packages/runtime/bench/decode.mjs", args),
  forms: (args) => script("@coppice/backend-cpu", "packages/backend-cpu/bench/graph-forms.mjs", args),
  search: (args) => script("coppice", "packages/cli/bench/search.mjs", args),
  spans: (args) => script("@coppice/runtime", "packages/runtime/bench/spans.mjs", args),
};

/**
 * @param {Readonly<Record<string, (args: readonly string[]) => void>>} known
 * @param {string | undefined} name
 * @param {readonly string[]} args
 */
function dispatch(known, name, args) {
  const command = name !== undefined && Object.hasOwn(known, name) ? known[name] : undefined;
  if (command) return command(args);
  console.error(`Unknown name "${name ?? ""}". Known: ${Object.keys(known).join(", ")}.`);
  process.exit(1);
}

const [name, ...args] = process.argv.slice(2);
if (name !== undefined && Object.hasOwn(commands, name)) install();
dispatch(commands, name, args);
