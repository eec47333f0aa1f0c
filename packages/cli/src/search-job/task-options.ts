import { basename } from "node:path";
import { InvalidArgumentError } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import {
  checkDisjoint,
  checkObjective,
  defaultMetric,
  defaultObjective,
  type Objective,
  parseMetric,
} from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import { readTask } from "../work/task-file.js";
import { sampleSets } from "./sample-sets.js";
import type { JobTask } from "./search-job.js";

/** A value for the task of this name, or for all tasks. */
export interface Named<T> {
  readonly name?: string;
  readonly value: T;
}

/** Reads `name=value` or a plain value, of options that may be repeated. */
export function named<T>(parse: (text: string) => T) {
  return (text: string, previous: readonly Named<T>[] = []): Named<T>[] => {
    const [, name, value] = /^([A-Za-z0-9][\w.-]*)=(.+)$/s.exec(text) ?? [];
    const one = value === undefined ? { value: parse(text) } : { name: name as string, value: parse(value) };
    return [...previous, one];
  };
}

/** Parses a number that `accepts` takes. */
export function finiteNumber(
  expected: string,
  accepts: (value: number) => boolean,
): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || !accepts(value)) {
      throw new InvalidArgumentError(`expected ${expected}.`);
    }
    return value;
  };
}

export interface TaskOptions {
  readonly task: readonly Named<string>[];
  readonly holdout?: readonly Named<string>[];
  readonly limit?: number;
  readonly weight?: readonly Named<number>[];
  readonly minimum?: readonly Named<number>[];
  readonly objective?: readonly Named<Objective>[];
  readonly metric?: readonly Named<string>[];
  readonly seed: number;
}

/**
 * Reads the tasks of a search. Tasks have their files' names without extension unless they are given others.
 * @throws COPPICE_USAGE for names that do not fit together, COPPICE_TASK_OVERLAP also when one task's search samples are
 * among another's holdout, and the errors of reading tasks
 */
export async function readJobTasks(options: TaskOptions, context: CliContext): Promise<JobTask[]> {
  const { limit, seed } = options;
  const several = options.task.length > 1;
  const names = options.task.map(
    ({ name, value }) => name ?? basename(value).replace(/\.(jsonl?|txt)$/i, ""),
  );
  checkNames(options, names);
  const tasks: JobTask[] = [];
  for (const [i, { value: file }] of options.task.entries()) {
    const name = names[i] as string;
    const given = <T>(values: readonly Named<T>[] | undefined): T | undefined =>
      (values?.findLast((one) => one.name === name) ?? values?.findLast((one) => one.name === undefined))
        ?.value;
    const task = await readTask(file, context);
    const holdoutFile = given(options.holdout);
    const holdout = holdoutFile === undefined ? undefined : await readTask(holdoutFile, context);
    const objective = given(options.objective) ?? defaultObjective(task.form);
    checkObjective(objective, task.form);
    const metric = given(options.metric);
    const minimum = given(options.minimum);
    tasks.push({
      name: several ? name : task.name,
      sets: sampleSets({ task, holdout, limit, seed }),
      objective,
      metric: metric === undefined ? defaultMetric(task.form) : parseMetric(metric, task.form),
      weight: given(options.weight) ?? 1,
      ...(minimum !== undefined && { minimum }),
    });
  }
  for (const task of tasks) {
    for (const other of tasks) {
      if (task === other) continue;
      checkDisjoint(task.sets.search, other.sets.report);
      if (task.sets.choice) checkDisjoint(task.sets.choice, other.sets.report);
    }
  }
  return tasks;
}

function checkNames(options: TaskOptions, names: readonly string[]): void {
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) {
    throw new CoppiceError("COPPICE_USAGE", `two tasks have the name ${JSON.stringify(twice)}`, {
      hint: "name them: --task first=one/test.jsonl --task second=two/test.jsonl",
    });
  }
  const { holdout, weight, minimum, objective, metric } = options;
  for (const [option, values = []] of Object.entries({ holdout, weight, minimum, objective, metric })) {
    const stranger = values.find(({ name }) => name !== undefined && !names.includes(name))?.name;
    if (stranger !== undefined) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `--${option} is for the task ${JSON.stringify(stranger)}, the tasks are ${names.join(", ")}`,
      );
    }
    if (option === "objective" || option === "metric") continue;
    const forAll = values.some(({ name }) => name === undefined);
    if (forAll && (names.length > 1 || option !== "holdout")) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `--${option} does not say for which task; expected --${option} ${names[0]}=...`,
      );
    }
    if (values.length > 0 && names.length === 1 && option !== "holdout") {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `--${option} weighs tasks against each other, but there is only one`,
        { hint: "give several files: --task a.jsonl --task b.jsonl" },
      );
    }
  }
}
