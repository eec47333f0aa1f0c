import type { MoeModel, Plan } from "@coppice/core";
import { CoppiceError } from "@coppice/core";
import packageJson from "../../package.json" with { type: "json" };
import { type CheckpointFolder, readSmallFile } from "../folder.js";
import { type JsonObject, ownValue, parseJsonObject, showValue } from "../json-object.js";
import { defaultLimits } from "../limits.js";

/** File that says where an output checkpoint comes from. */
export const provenanceFileName = "coppice.json";
const provenanceVersion = 1;

/** What `coppice.json` holds. */
export interface Provenance {
  readonly format: "coppice.checkpoint";
  readonly version: number;
  /** The checkpoint that the plan was applied to. */
  readonly source: { readonly family: string; readonly fingerprint: string };
  /** The applied plan; unchecked when it was read from a file (`parsePlan` of core checks it). */
  readonly plan: unknown;
  /** Releases that took part, by package name. */
  readonly versions: JsonObject;
  /** What the caller added: recipe, scores ... */
  readonly metadata: JsonObject;
}

/** There is no time stamp in it: the same plan gives the same bytes. */
export function createProvenance(model: MoeModel, plan: Plan, metadata: JsonObject = {}): Provenance {
  return {
    format: "coppice.checkpoint",
    version: provenanceVersion,
    source: { family: model.family, fingerprint: model.fingerprint },
    plan,
    versions: { [packageJson.name]: packageJson.version },
    metadata,
  };
}

/** As text: a line for every key, because the plans in it may hold millions of numbers. */
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
  const [format, version] = [ownValue(parsed, "format"), ownValue(parsed, "version")];
  const source = ownValue(parsed, "source");
  const fault =
    format !== "coppice.checkpoint"
      ? `format is ${showValue(format)}, expected "coppice.checkpoint"`
      : version !== provenanceVersion
        ? `version is ${showValue(version)}, this release reads version ${provenanceVersion}`
        : !isSource(source)
          ? `source is ${showValue(source)}, expected a family and a fingerprint`
          : undefined;
  if (fault !== undefined) {
    throw new CoppiceError("COPPICE_FORMAT_CONFIG", `${provenanceFileName}: ${fault}`);
  }
  return {
    format: "coppice.checkpoint",
    version: provenanceVersion,
    source: source as Provenance["source"],
    plan: ownValue(parsed, "plan"),
    versions: objectOf(parsed, "versions"),
    metadata: objectOf(parsed, "metadata"),
  };
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
