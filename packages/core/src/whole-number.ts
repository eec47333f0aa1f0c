import { CoppiceError } from "./errors.js";

/**
 * @param name of the option, for the message
 * @param most default: no limit
 * @returns `value`, a whole number of 1 to `most`
 * @throws COPPICE_USAGE
 */
export function checkWholeNumber(name: string, value: number, most?: number): number {
  if (Number.isSafeInteger(value) && value >= 1 && (most === undefined || value <= most)) return value;
  const range = most === undefined ? "at least 1" : `1 to ${most}`;
  throw new CoppiceError("COPPICE_USAGE", `${name} is ${value}, expected a whole number of ${range}`);
}
