import type { AttentionPlan, MoeModel, Plan } from "@coppice/core";
import { CoppiceError, recordPlan } from "@coppice/core";
import packageJson from "../../package.json" with { type: "json" };
import { type CheckpointFolder, readSmallFile } from "../folder.js";
import { type JsonObject, ownValue, parseJsonObject, showValue } from "../json-object.js";
import { defaultLimits } from "../limits.js";
import type { LoadedCheckpoint } from "../load.js";
import type { SourceCache } from "../source-cache.js";

/** File that says where an output checkpoint comes from. */
export const provenanceFileName = "coppice.json";
const provenanceVersion = 1;
/** Every one is a step of pruning, merging or quantizing, of which a checkpoint sees a few. */
const mostAncestors = 1000;
/** Fingerprints have 64 digits. */
const fingerprintLength = 1000;

/** What `coppice.json` holds. */
export interface Provenance {
  readonly format: "coppice.checkpoint";
  readonly version: number;
  /** The checkpoint that the plan was applied to. */
  readonly source: { readonly family: string; readonly fingerprint: string };
  /** Fingerprints of all checkpoints that this one was made from, the last first. */
  readonly derivedFrom: readonly string[];
  /** How far its heads see; unchecked when it was read from a file (`parseAttentionPlan` of core checks it). */
  readonly attention?: unknown;
  /**
   * The record of the applied plan (`recordPlan` of core), of older releases the plan itself; unchecked when it was read from
   * a file: `parsePlan` of core checks it, `checkRecord` compares it with a plan.
   */
  readonly plan: unknown;
  /** Releases that took part, by package name. */
  readonly versions: JsonObject;
  /** What the caller added: recipe, scores ... */
  readonly metadata: JsonObject;
}

/** There is no time stamp in it: the same plan gives the same bytes. */
export function createProvenance(
  model: MoeModel,
  plan: Plan,
  attention: AttentionPlan | undefined,
  metadata: JsonObject = {},
): Provenance {
  return {
    format: "coppice.checkpoint",
    version: provenanceVersion,
    source: { family: model.family, fingerprint: model.fingerprint },
    derivedFrom: lineage(model),
    ...(attention && { attention }),
    plan: recordPlan(plan, model),
    versions: { [packageJson.name]: packageJson.version },
    metadata,
  };
}

/** What a checkpoint made from `model` is derived from. */
export function lineage({ fingerprint, derivedFrom = [] }: MoeModel): string[] {
  return [fingerprint, ...derivedFrom].slice(0, mostAncestors);
}

/**
 * What `coppice.json` of a checkpoint says, for another form of its weights; undefined when it has none. Older releases kept
 * whole plans: what of them is in the weights is left out.
 * @throws as `readProvenance`
 */
export async function carriedProvenance(
  { model, folder }: Pick<LoadedCheckpoint, "model" | "folder">,
  signal: AbortSignal | undefined,
): Promise<Provenance | undefined> {
  const found = await readProvenance(folder, signal ? { signal } : {});
  return found && { ...found, plan: recordPlan(found.plan, model) };
}

/**
 * As text: a line for every key, because the plans in it may hold millions of numbers. What `readOrigin` reads stands
 * before the plan.
 */
export function provenanceText(provenance: Provenance): string {
  const lines = Object.entries(provenance).map(
    ([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)}`,
  );
  return `{\n${lines.join(",\n")}\n}\n`;
}

/**
 * Reads `coppice.json` of a folder; undefined when there is none.
 * @throws COPPICE_FORMAT_CONFIG, COPPICE_FORMAT_LIMIT, COPPICE_IO_READ
 */
export async function readProvenance(
  folder: CheckpointFolder,
  options: { signal?: AbortSignal } = {},
): Promise<Provenance | undefined> {
  if (!(await folder.list()).some(({ name }) => name === provenanceFileName)) return undefined;
  const bytes = await readSmallFile(
    folder,
    provenanceFileName,
    defaultLimits.provenanceBytes,
    options.signal,
  );
  const parsed = parseJsonObject(bytes, provenanceFileName, "COPPICE_FORMAT_CONFIG");
  return {
    ...parseHead(parsed),
    plan: ownValue(parsed, "plan"),
    versions: objectOf(parsed, "versions"),
    metadata: objectOf(parsed, "metadata"),
  };
}

/** What opening a checkpoint takes from its `coppice.json`. */
export type Origin = Pick<Provenance, "source" | "derivedFrom" | "attention">;

/**
 * As `readProvenance`, without what makes the file large where Coppice wrote it: all that stands before the plan is read
 * alone.
 * @throws COPPICE_FORMAT_CONFIG, COPPICE_FORMAT_LIMIT, COPPICE_IO_READ
 */
export async function readOrigin(
  folder: CheckpointFolder,
  sources: SourceCache,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Origin | undefined> {
  const { signal } = options;
  const entry = (await folder.list()).find(({ name }) => name === provenanceFileName);
  if (!entry) return undefined;
  const { originBytes } = defaultLimits;
  if (entry.size > originBytes) {
    const head = new Uint8Array(originBytes);
    await sources.use(provenanceFileName, (source) => source.read(0, head, signal ? { signal } : {}));
    const text = new TextDecoder().decode(head);
    const end = text.indexOf(',\n  "plan": ');
    if (end >= 0) {
      const bytes = new TextEncoder().encode(`${text.slice(0, end)}\n}`);
      return parseHead(parseJsonObject(bytes, provenanceFileName, "COPPICE_FORMAT_CONFIG"));
    }
  }
  return readProvenance(folder, signal ? { signal } : {});
}

function parseHead(parsed: JsonObject): Origin & Pick<Provenance, "format" | "version"> {
  const [format, version] = [ownValue(parsed, "format"), ownValue(parsed, "version")];
  const [source, attention] = [ownValue(parsed, "source"), ownValue(parsed, "attention")];
  const fault = (key: string, value: unknown, expected: string) =>
    new CoppiceError(
      "COPPICE_FORMAT_CONFIG",
      `${provenanceFileName}: ${key} is ${showValue(value)}, ${expected}`,
    );
  if (format !== "coppice.checkpoint") throw fault("format", format, 'expected "coppice.checkpoint"');
  if (version !== provenanceVersion)
    throw fault("version", version, `this release reads version ${provenanceVersion}`);
  if (!isSource(source)) throw fault("source", source, "expected a family and a fingerprint");
  const { fingerprint } = source as Provenance["source"];
  const derivedFrom = ownValue(parsed, "derivedFrom") ?? [fingerprint];
  if (!isLineage(derivedFrom))
    throw fault("derivedFrom", derivedFrom, `expected at most ${mostAncestors} fingerprints`);
  return {
    format: "coppice.checkpoint",
    version: provenanceVersion,
    source: source as Provenance["source"],
    derivedFrom,
    ...(attention !== undefined && { attention }),
  };
}

function isLineage(value: unknown): value is string[] {
  return (
    Array.isArray(value) &&
    value.length <= mostAncestors &&
    value.every((item) => typeof item === "string" && item.length <= fingerprintLength)
  );
}

function isSource(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  const { family, fingerprint } = value as Record<string, unknown>;
  return typeof family === "string" && typeof fingerprint === "string";
}

function objectOf(parsed: JsonObject, key: string): JsonObject {
  const value = ownValue(parsed, key);
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
}
