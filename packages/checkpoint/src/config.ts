import { CoppiceError } from "@coppice/core";
import { type JsonObject, ownValue, showValue } from "./json-object.js";

/**
 * Reads typed values out of a parsed JSON file. Every getter takes keys in the order of preference; a key may be a
 * path through nested objects, joined by dots (`ffn_config.moe_top_k`).
 */
export class ConfigReader {
  readonly #object: JsonObject;
  readonly #file: string;

  constructor(object: JsonObject, file: string) {
    this.#object = object;
    this.#file = file;
  }

  /** The first of `keys` that is present and not null. */
  get(keys: string | readonly string[]): { key: string; value: unknown } | undefined {
    for (const key of typeof keys === "string" ? [keys] : keys) {
      const value = this.#at(key);
      if (value !== undefined && value !== null) return { key, value };
    }
    return undefined;
  }

  /** True when the key is there, and null. */
  isNull(key: string): boolean {
    return this.#at(key) === null;
  }

  /** @throws COPPICE_FORMAT_CONFIG when absent without a default, or no integer from `min` to 2**31 - 1 */
  integer(keys: string | readonly string[], fallback?: number, min = 1): number {
    const { key, value } = this.get(keys) ?? this.#default(keys, fallback);
    if (!isInteger(value, min)) throw this.invalid(key, value, `an integer from ${min}`);
    return value;
  }

  /**
   * An integer, or the entry of a layer in a list of them (HunYuan).
   * @throws COPPICE_FORMAT_CONFIG as `integer`, and when the list is too short
   */
  layerInteger(keys: string | readonly string[], layer: number, fallback?: number, min = 1): number {
    const { key, value } = this.get(keys) ?? this.#default(keys, fallback);
    const entry = Array.isArray(value) ? value[layer] : value;
    if (!isInteger(entry, min)) {
      throw this.invalid(key, value, `an integer from ${min}, or a list with one for every layer`);
    }
    return entry;
  }

  /** @throws COPPICE_FORMAT_CONFIG when absent without a default, or no finite number */
  number(keys: string | readonly string[], fallback?: number): number {
    const { key, value } = this.get(keys) ?? this.#default(keys, fallback);
    if (typeof value !== "number" || !Number.isFinite(value)) throw this.invalid(key, value, "a number");
    return value;
  }

  /** @throws COPPICE_FORMAT_CONFIG when absent without a default, or not a positive finite number */
  positive(keys: string | readonly string[], fallback?: number): number {
    const { key, value } = this.get(keys) ?? this.#default(keys, fallback);
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
      throw this.invalid(key, value, "a positive number");
    }
    return value;
  }

  /** @throws COPPICE_FORMAT_CONFIG when absent, or not a list of positive numbers of this length */
  positives(key: string, length: number): number[] {
    const { value } = this.get(key) ?? this.#default(key, undefined);
    const isPositive = (item: unknown) => typeof item === "number" && Number.isFinite(item) && item > 0;
    if (!Array.isArray(value) || value.length !== length || !value.every(isPositive)) {
      throw this.invalid(key, value, `${length} positive numbers`);
    }
    return value as number[];
  }

  /** @throws COPPICE_FORMAT_CONFIG when present and no boolean */
  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key)?.value ?? fallback;
    if (typeof value !== "boolean") throw this.invalid(key, value, "true or false");
    return value;
  }

  /** @throws COPPICE_FORMAT_CONFIG when present and no string */
  string(key: string): string | undefined {
    const value = this.get(key)?.value;
    if (value !== undefined && typeof value !== "string") throw this.invalid(key, value, "a string");
    return value;
  }

  /** Undefined when absent. @throws COPPICE_FORMAT_CONFIG when present and no list of strings */
  strings(key: string): string[] | undefined {
    const value = this.get(key)?.value;
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || !value.every((item) => typeof item === "string")) {
      throw this.invalid(key, value, "a list of strings");
    }
    return value;
  }

  /** @throws COPPICE_FORMAT_CONFIG when present and no object */
  object(key: string): ConfigReader | undefined {
    const value = this.get(key)?.value;
    if (value === undefined) return undefined;
    if (typeof value !== "object" || Array.isArray(value)) throw this.invalid(key, value, "an object");
    return new ConfigReader(value as JsonObject, `${this.#file}: ${key}`);
  }

  /** Keys of this object. */
  keys(): string[] {
    return Object.keys(this.#object);
  }

  /** One integer or a list of them; empty when absent. @throws COPPICE_FORMAT_CONFIG */
  integers(key: string): number[] {
    const value = this.get(key)?.value;
    if (value === undefined) return [];
    const list = Array.isArray(value) ? value : [value];
    if (!list.every((item) => Number.isSafeInteger(item) && item >= 0)) {
      throw this.invalid(key, value, "an integer from 0 or a list of them");
    }
    return list as number[];
  }

  invalid(key: string, value: unknown, expected: string): CoppiceError {
    return new CoppiceError(
      "COPPICE_FORMAT_CONFIG",
      `${this.#file}: ${key} is ${showValue(value)}, expected ${expected}`,
      { details: { file: this.#file, key, value: showValue(value) } },
    );
  }

  /** A setting that is well-formed and that Coppice does not compute. */
  unsupported(family: string, key: string, value: unknown, expected: string): CoppiceError {
    return new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `${this.#file}: ${key} is ${showValue(value)}; for ${family} only ${expected} is supported`,
      { details: { key, value: showValue(value) } },
    );
  }

  #at(path: string): unknown {
    let value: unknown = this.#object;
    for (const key of path.split(".")) {
      if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
      value = ownValue(value as JsonObject, key);
    }
    return value;
  }

  #default(keys: string | readonly string[], fallback: number | undefined): { key: string; value: unknown } {
    const key = typeof keys === "string" ? keys : (keys[0] as string);
    if (fallback !== undefined) return { key, value: fallback };
    throw new CoppiceError("COPPICE_FORMAT_CONFIG", `${this.#file} has no ${key}`, {
      details: { file: this.#file, key },
    });
  }
}

function isInteger(value: unknown, min: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= min && value <= 0x7fffffff;
}
