import { CoppiceError } from "@coppice/core";
import { type JsonObject, ownValue, showValue } from "./json-object.js";

/** Reads typed values out of a parsed JSON file; every getter takes names in the order of preference. */
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
      const value = ownValue(this.#object, key);
      if (value !== undefined && value !== null) return { key, value };
    }
    return undefined;
  }

  /** @throws COPPICE_FORMAT_CONFIG when absent without a default, or no integer from `min` to 2**31 - 1 */
  integer(keys: string | readonly string[], fallback?: number, min = 1): number {
    const found = this.get(keys) ?? this.#default(keys, fallback);
    const { value } = found;
    if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > 0x7fffffff) {
      throw this.invalid(found.key, value, `an integer from ${min}`);
    }
    return value;
  }

  /** @throws COPPICE_FORMAT_CONFIG when absent without a default, or not a positive finite number */
  positive(keys: string | readonly string[], fallback?: number): number {
    const found = this.get(keys) ?? this.#default(keys, fallback);
    const { value } = found;
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
      throw this.invalid(found.key, value, "a positive number");
    }
    return value;
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

  /** @throws COPPICE_FORMAT_CONFIG when present and no object */
  object(key: string): ConfigReader | undefined {
    const value = this.get(key)?.value;
    if (value === undefined) return undefined;
    if (typeof value !== "object" || Array.isArray(value)) throw this.invalid(key, value, "an object");
    return new ConfigReader(value as JsonObject, `${this.#file}: ${key}`);
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

  #default(keys: string | readonly string[], fallback: number | undefined): { key: string; value: number } {
    const key = typeof keys === "string" ? keys : (keys[0] as string);
    if (fallback !== undefined) return { key, value: fallback };
    throw new CoppiceError("COPPICE_FORMAT_CONFIG", `${this.#file} has no ${key}`, {
      details: { file: this.#file, key },
    });
  }
}
