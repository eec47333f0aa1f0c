import { CoppiceError } from "@coppice/core";

/**
 * Everything that decides a run's result: model fingerprint, hashes of the samples, strategy and its options, seed,
 * batch, budget, package versions. JSON values only.
 */
export type RunIdentity = Readonly<Record<string, unknown>>;

export interface IdentityDifference {
  /** Path of the field, such as "options.keep". */
  readonly field: string;
  /** Value in the run folder; undefined when it has none. */
  readonly run: unknown;
  /** Value of this call. */
  readonly now: unknown;
}

/** Deepest nesting that is compared field by field; below it values are compared as text. */
const deepest = 8;

/** Fields whose values differ, sorted by path; the order of keys does not matter. */
export function identityDifferences(run: RunIdentity, now: RunIdentity): IdentityDifference[] {
  const found: IdentityDifference[] = [];
  compare("", run, now, 0, found);
  return found.sort((a, b) => (a.field < b.field ? -1 : 1));
}

/** @throws COPPICE_RUN_IDENTITY listing the differing fields */
export function checkIdentity(path: string, run: RunIdentity, now: RunIdentity): void {
  const differences = identityDifferences(run, now);
  if (differences.length === 0) return;
  const lines = differences.map(({ field, run, now }) => `${field} was ${show(run)}, is now ${show(now)}`);
  throw new CoppiceError("COPPICE_RUN_IDENTITY", `${path} holds another run: ${lines.join("; ")}`, {
    hint: "give the same arguments to resume it, or another folder to start a new run",
    details: { path, differences },
  });
}

function compare(field: string, a: unknown, b: unknown, depth: number, found: IdentityDifference[]): void {
  if (isRecord(a) && isRecord(b) && depth < deepest) {
    for (const key of new Set([...Object.keys(a), ...Object.keys(b)])) {
      const inner = field === "" ? key : `${field}.${key}`;
      compare(inner, own(a, key), own(b, key), depth + 1, found);
    }
    return;
  }
  if (JSON.stringify(a) !== JSON.stringify(b)) found.push({ field, run: a, now: b });
}

function own(record: Record<string, unknown>, key: string): unknown {
  return Object.hasOwn(record, key) ? record[key] : undefined;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function show(value: unknown): string {
  return value === undefined ? "absent" : (JSON.stringify(value) ?? String(value)).slice(0, 120);
}
