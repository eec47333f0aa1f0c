import { CoppiceError } from "./errors.js";

/**
 * @param name of the option, for the message
 * @param most default: no limit
 * @param least default 1
 * @returns `value`, a whole number of `least` to `most`
 * @throws COPPICE_USAGE
 */
export function checkWholeNumber(name: string, value: number, most?: number, least = 1): number {
  if (Number.isSafeInteger(value) && value >= least && (most === undefined || value <= most)) return value;
  const range = most === undefined ? `at least ${least}` : `${least} to ${most}`;
  throw new CoppiceError("COPPICE_USAGE", `${name} is ${value}, expected a whole number of ${range}`);
}
