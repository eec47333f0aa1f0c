import { CoppiceError, type ErrorCode } from "@coppice/core";

export type JsonObject = Readonly<Record<string, unknown>>;

/**
 * Parses UTF-8 JSON whose top is an object. Keys such as `__proto__` become own keys of the result; callers read
 * them with `Object.entries` or `ownValue` and never copy them onto other objects.
 * @throws `code` when it is not UTF-8, not JSON or not an object
 */
export function parseJsonObject(bytes: Uint8Array, file: string, code: ErrorCode): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new CoppiceError(code, `${file} is not valid JSON: ${why.slice(0, 200)}`, {
      cause,
      details: { file },
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CoppiceError(code, `${file} holds ${showValue(value)}, expected an object`, {
      details: { file },
    });
  }
  return value as JsonObject;
}

/** The value under an own key, so that `constructor` or `__proto__` never reach a prototype. */
export function ownValue(object: JsonObject, key: string): unknown {
  return Object.hasOwn(object, key) ? object[key] : undefined;
}

/** A value as it may stand in a message. */
export function showValue(value: unknown): string {
  if (Array.isArray(value) && value.length > 16) return `an array of ${value.length}`;
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    // Values nested some ten thousand deep exhaust the stack of JSON.stringify.
    text = Array.isArray(value) ? "an array" : "an object";
  }
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/**
 * True when some object of the JSON text has a key twice, which `JSON.parse` hides. `text` must be valid JSON and
 * `parsed` its value: outside of strings every colon is one key.
 */
export function hasDuplicateKeys(text: Uint8Array, parsed: unknown): boolean {
  let colons = 0;
  for (let i = 0; i < text.length; i++) {
    const byte = text[i];
    if (byte === 0x3a) colons++;
    else if (byte === 0x22) {
      for (i++; text[i] !== 0x22; i++) if (text[i] === 0x5c) i++;
    }
  }
  return colons !== countKeys(parsed);
}

function countKeys(value: unknown): number {
  let count = 0;
  const todo = [value];
  for (let at = todo.pop(); at !== undefined; at = todo.pop()) {
    if (typeof at !== "object" || at === null) continue;
    const values = Object.values(at);
    if (!Array.isArray(at)) count += values.length;
    for (const item of values) if (typeof item === "object" && item !== null) todo.push(item);
  }
  return count;
}
