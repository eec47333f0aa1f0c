import { createHash } from "node:crypto";
import { lstat, mkdir } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import type { PlanScores } from "@coppice/core";
import { readTextBounded, writeError, writeFileAtomic } from "@coppice/core/node";
import { decodeLine, encodeLine } from "./checked-line.js";
import type { RunIdentity } from "./run-identity.js";

/** Scores of a plan by part (`raceParts` of core), undefined where a part was not evaluated. */
export type PartScores = readonly (PlanScores | undefined)[];

/** Largest file that is read: a million samples at some 20 bytes each. */
const maxFileBytes = 2 ** 25;
/** More parts than any race has. */
const maxParts = 64;
const filesVersion = 1;

/**
 * Scores of plans in a folder, one file per plan, in a folder of their own for every identity. Files are replaced whole and
 * read whole, so any number of processes may share the folder, also over a network. A file that is damaged, of another form
 * or too large counts as not there.
 */
export class ScoreFiles {
  readonly #folder: string;
  readonly #identity: string;

  private constructor(folder: string, identity: string) {
    this.#folder = folder;
    this.#identity = identity;
  }

  /** Makes the folder where it is missing. @throws COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE */
  static async open(folder: string, identity: RunIdentity): Promise<ScoreFiles> {
    const hash = createHash("sha256").update(JSON.stringify(identity)).digest("hex").slice(0, 32);
    const path = join(resolve(folder), hash);
    try {
      await mkdir(path, { recursive: true });
    } catch (error) {
      throw writeError(path, error);
    }
    return new ScoreFiles(path, hash);
  }

  /** @param key of a plan, hex digits */
  async read(key: string): Promise<PartScores | undefined> {
    const path = this.#path(key);
    try {
      // What is no plain file could be endless, or never answer.
      const found = await lstat(path);
      if (!found.isFile()) return undefined;
      const line = await readTextBounded(path, { limit: maxFileBytes });
      const record = line.endsWith("\n") ? decodeLine(line.slice(0, -1)) : undefined;
      if (record?.type !== "scores") return undefined;
      const { version, identity, key: plan, parts } = record as Readonly<Record<string, unknown>>;
      if (version !== filesVersion || identity !== this.#identity || plan !== key) return undefined;
      return parseParts(parts);
    } catch {
      return undefined;
    }
  }

  /** @throws COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE */
  async write(key: string, parts: PartScores): Promise<void> {
    const path = this.#path(key);
    try {
      await mkdir(dirname(path), { recursive: true });
    } catch (error) {
      throw writeError(path, error);
    }
    const written = parts.map((part) =>
      part
        ? { scores: [...part.scores], ...(part.correct && { correct: [...part.correct].join("") }) }
        : null,
    );
    const common = { type: "scores", version: filesVersion, identity: this.#identity, key };
    await writeFileAtomic(path, encodeLine({ ...common, parts: written }));
  }

  #path(key: string): string {
    return join(this.#folder, key.slice(0, 2), `${key}.json`);
  }
}

function parseParts(value: unknown): PartScores | undefined {
  if (!Array.isArray(value) || value.length === 0 || value.length > maxParts) return undefined;
  const parts: (PlanScores | undefined)[] = [];
  for (const part of value as unknown[]) {
    const parsed = part === null ? undefined : parsePart(part);
    if (part !== null && !parsed) return undefined;
    parts.push(parsed);
  }
  return parts;
}

function parsePart(value: unknown): PlanScores | undefined {
  const { scores, correct } = (value ?? {}) as Readonly<Record<string, unknown>>;
  if (!Array.isArray(scores) || scores.length === 0 || !scores.every(Number.isFinite)) return undefined;
  if (correct === undefined) return { scores: Float64Array.from(scores as number[]) };
  if (typeof correct !== "string" || correct.length !== scores.length || !/^[01]*$/.test(correct))
    return undefined;
  return { scores: Float64Array.from(scores as number[]), correct: Uint8Array.from(correct, Number) };
}
