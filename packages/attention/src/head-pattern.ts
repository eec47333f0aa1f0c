import { CoppiceError } from "@coppice/core";

/** The largest published models have some 130 layers of up to 128 heads. */
const mostLines = 4096;
const mostColumns = 4096;

/**
 * Numbers of a tab-separated head pattern, as DuoAttention publishes them: one line per layer, one number from 0 to 1 per KV head.
 * Other white space and commas separate as well.
 * @throws COPPICE_ATTENTION_INVALID
 */
export function parseHeadPattern(text: string): number[][] {
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== "");
  if (lines.length === 0 || lines.length > mostLines)
    throw invalid(`it has ${lines.length} lines; expected one per layer, at most ${mostLines}`);
  return lines.map((line, row) => {
    const cells = line.trim().split(/[\s,]+/, mostColumns + 1);
    if (cells.length > mostColumns)
      throw invalid(`line ${row + 1} has more than ${mostColumns} numbers, one per KV head`);
    return cells.map((cell) => {
      const value = Number(cell);
      // Gates are trained within 0 and 1; a little beyond is rounding.
      if (cell !== "" && value >= -0.01 && value <= 1.01) return value;
      throw invalid(`line ${row + 1} has ${JSON.stringify(cell.slice(0, 40))}, expected numbers from 0 to 1`);
    });
  });
}

function invalid(message: string): CoppiceError {
  return new CoppiceError("COPPICE_ATTENTION_INVALID", `not a usable head pattern: ${message}`);
}
