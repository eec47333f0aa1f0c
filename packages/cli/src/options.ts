import { InvalidArgumentError, Option } from "@commander-js/extra-typings";

/** Text below a command's help. */
export function examples(...lines: readonly string[]): string {
  return `\nExamples:\n${lines.map((line) => `  $ ${line}`).join("\n")}`;
}

/** Parses a whole number of at least `least`. */
export function wholeNumber(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^-?\d+$/.test(text.trim()) || !Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`expected a whole number of at least ${least}.`);
    }
    return value;
  };
}

/** Parses a number in [least, most]. */
export function numberIn(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= least && value <= most)) {
      throw new InvalidArgumentError(
        most === Number.POSITIVE_INFINITY
          ? `expected a number of at least ${least}.`
          : `expected a number from ${least} to ${most}.`,
      );
    }
    return value;
  };
}

/** `1,2,3` -> Int32Array; repeated options make several sequences. */
export function tokenIds(text: string, previous: readonly Int32Array[] = []): Int32Array[] {
  const ids = text.split(",").map((part) => {
    const id = Number(part);
    if (!/^\s*\d+\s*$/.test(part) || id > 0x7fffffff) {
      throw new InvalidArgumentError("expected token ids such as 1,2,3.");
    }
    return id;
  });
  return [...previous, Int32Array.from(ids)];
}

/** `key=value` pairs into one object; values are JSON when they parse as JSON, else text. */
export function settings(
  text: string,
  previous: Readonly<Record<string, unknown>> = {},
): Readonly<Record<string, unknown>> {
  const at = text.indexOf("=");
  const key = text.slice(0, at);
  if (at < 1 || !/^[A-Za-z][\w-]*$/.test(key)) {
    throw new InvalidArgumentError("expected key=value, such as population=40.");
  }
  const value = text.slice(at + 1);
  let parsed: unknown = value;
  try {
    parsed = JSON.parse(value);
  } catch {
    // Not JSON: plain text such as `preset=paper`.
  }
  return { ...previous, [key]: parsed };
}

export function list(text: string): string[] {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

/** Parses a list of values that are parsed one by one, `1,2,3`. */
export function listOf<T>(parse: (text: string) => T): (text: string) => T[] {
  return (text) => list(text).map(parse);
}

const runGroup = "Running:";

export const backendOption = new Option("--backend <name>", "backend plugin that runs the model")
  .default("cpu")
  .helpGroup(runGroup);

export const backendSetOption = new Option("--backend-set <key=value>", "option of the backend; repeatable")
  .argParser(settings)
  .helpGroup(runGroup);

export const workersOption = new Option(
  "--workers <n>",
  "worker processes; default: one per core, at most 4; one with --backend webgpu",
)
  .argParser(wholeNumber(1))
  .helpGroup(runGroup);

export const executorOption = new Option(
  "--executor <where>",
  "where plans are evaluated: local, the address of a queue (redis://host:6379), or command",
)
  .default("local")
  .helpGroup(runGroup);

export const executorSetOption = new Option(
  "--executor-set <key=value>",
  'setting of the executor, such as queue=mine or command=["ssh","host"]; repeatable',
)
  .argParser(settings)
  .helpGroup(runGroup);

export const seedOption = new Option("--seed <n>", "seed of everything random")
  .argParser(wholeNumber(0))
  .default(1);

export const dtypeOption = new Option(
  "--dtype <name>",
  "exported folders with several graphs: which weights to load, such as fp32 or q4",
).helpGroup(runGroup);

export const planOption = new Option("--plan <file>", "run the model under this plan, without rewriting it");

export const attentionOption = new Option(
  "--attention <plan>",
  "limit attention: an attention plan, or a plugin that masks while a text runs, such as flex-prefill; none: not even as the " +
    "checkpoint's own plan says, which is the default",
);

export const attentionPlanOption = new Option(
  "--attention <plan>",
  "run the model under this attention plan; none: not even under the checkpoint's own, which is the default",
);

export const attentionSetOption = new Option(
  "--attention-set <key=value>",
  "option of the attention plugin; repeatable",
).argParser(settings);

/** Bytes such as 500MB, 2GB, 2GiB or a plain number. */
export function byteCount(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?$/i.exec(text.trim());
  const [, digits = "", unit = "", binary = ""] = match ?? [];
  const value =
    Number(digits) * (binary ? 1024 : 1000) ** (unit === "" ? 0 : "kmgt".indexOf(unit.toLowerCase()) + 1);
  if (!match || !Number.isSafeInteger(Math.round(value)) || value < 1) {
    throw new InvalidArgumentError("expected a size such as 500MB or 2GB.");
  }
  return Math.round(value);
}

const outputFilesGroup = "Writing:";

export const outOption = new Option("--out <folder>", "where the checkpoint goes; must not exist")
  .makeOptionMandatory()
  .helpGroup(outputFilesGroup);

export const dryRunOption = new Option("--dry-run", "say what would be written, and write nothing").helpGroup(
  outputFilesGroup,
);

export const maxShardOption = new Option(
  "--max-shard-size <size>",
  "most bytes per weight file, such as 2GB; default 5GB",
)
  .argParser(byteCount)
  .helpGroup(outputFilesGroup);

export const criterionOption = new Option(
  "--criterion <name>",
  "criterion plugin, such as reap, frequency, random",
).default("reap");

export const criterionSetOption = new Option(
  "--set <key=value>",
  "option of the criterion; repeatable",
).argParser(settings);

export const statsOption = new Option("--stats <file>", "statistics file of `coppice calibrate`");

export const dataOption = new Option("--data <file>", "collect statistics on this task file or text");

export const dataLimitOption = new Option("--limit <n>", "only the first n samples of --data")
  .argParser(wholeNumber(1))
  .conflicts("stats");

export const sampleLimitOption = new Option("--limit <n>", "only the first n samples").argParser(
  wholeNumber(1),
);

export const dataKindOption = new Option(
  "--kind <kind>",
  "prompts alone, with the answers of the task, or with what the model writes itself",
)
  .choices(["prompts", "answers", "generations"] as const)
  .default("answers" as const);

export const newTokensOption = new Option(
  "--max-tokens <n>",
  "--kind generations: most new tokens of each prompt; default 128",
).argParser(wholeNumber(1));
