import { CoppiceError, throwIfAborted } from "@coppice/core";
import type { Collection, CollectionOptions } from "./collection.js";
import type { WorkStore } from "./work-store.js";

export const recordName = "calibration.json";
const format = "coppice.calibration";
const version = 1;

/** What the results depend on; a pass continues only what began with the same. */
export function streamIdentity(
  { model, source, content }: Collection,
  { tokenBudget, parts, sample }: Pick<CollectionOptions, "tokenBudget" | "parts" | "sample">,
  engine: string | undefined,
): Readonly<Record<string, unknown>> {
  return {
    model: model.fingerprint,
    data: source,
    extras: content.extras,
    sample: sample ? { limit: sample.limit, with: content.sample } : null,
    tokenBudget: tokenBudget ?? null,
    parts: parts ?? null,
    engine: engine ?? null,
  };
}

/** The record of a pass in its store: what it is, and the first layer that is not done. */
export class StreamRecord {
  readonly #store: WorkStore;
  readonly #identity: Readonly<Record<string, unknown>>;
  #next = 0;

  private constructor(store: WorkStore, identity: Readonly<Record<string, unknown>>) {
    this.#store = store;
    this.#identity = identity;
  }

  /**
   * The pass of this identity that the store holds, or a new one, of which `advance` leaves the first trace.
   * @param end layer before which the pass ends
   * @throws COPPICE_RUN_IDENTITY
   */
  static async open(
    store: WorkStore,
    identity: Readonly<Record<string, unknown>>,
    end: number,
    signal?: AbortSignal,
  ): Promise<StreamRecord> {
    throwIfAborted(signal, `opening ${store.label}`);
    const record = new StreamRecord(store, identity);
    if ((await store.list()).includes(recordName)) {
      const found = parse(await store.read(recordName));
      const next = found?.["next"];
      if (found?.["format"] !== format || found["version"] !== version || !isLayer(next, end)) {
        throw refused(`${store.label} holds no calibration that this release can continue`);
      }
      const before = (found["identity"] ?? {}) as Record<string, unknown>;
      const other = Object.keys(identity).filter(
        (key) => JSON.stringify(before[key]) !== JSON.stringify(identity[key]),
      );
      if (other.length > 0) {
        throw refused(`${store.label} holds a calibration with other settings: ${other.join(", ")}`, {
          before,
        });
      }
      record.#next = next;
    }
    return record;
  }

  /** First layer that is not done. */
  get next(): number {
    return this.#next;
  }

  /** Notes that the layers before `next` are done, with all that the rest needs of them. */
  async advance(next: number): Promise<void> {
    const text = JSON.stringify({ format, version, identity: this.#identity, next }, null, 2);
    await this.#store.write(recordName, new TextEncoder().encode(`${text}\n`));
    this.#next = next;
  }
}

function parse(bytes: Uint8Array): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function isLayer(value: unknown, end: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= end;
}

function refused(message: string, details: Readonly<Record<string, unknown>> = {}): CoppiceError {
  return new CoppiceError("COPPICE_RUN_IDENTITY", message, {
    hint: "remove it to begin anew, or give another place for the work",
    details,
  });
}
