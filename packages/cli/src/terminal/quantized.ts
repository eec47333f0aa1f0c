import type { LoadedCheckpoint } from "@coppice/checkpoint";
import type { QuantizedMatrixReport, QuantizeSummary } from "@coppice/quantizers";
import { formatBytes, formatShare } from "@coppice/report";
import type { ChosenWidths } from "../work/choose-widths.js";
import { formatFacts } from "./format.js";

/** What `coppice quantize` reports. */
export interface QuantizedResult {
  readonly out: string;
  readonly method: string;
  /** Bytes of weights, headers not included. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  /** Bytes of all files. */
  readonly fileBytes: number;
  readonly seconds: number;
  readonly matrices: readonly QuantizedMatrixReport[];
  /** How the bits were chosen, without the table that it went by. */
  readonly choice?: Omit<ChosenWidths, "sensitivity" | "matrices">;
}

export function quantizedResult(
  { tensors }: LoadedCheckpoint,
  { tensorBytes, bytes, matrices }: QuantizeSummary,
  {
    choice,
    ...facts
  }: Pick<QuantizedResult, "out" | "method" | "seconds"> & { readonly choice?: ChosenWidths },
): QuantizedResult {
  return {
    ...facts,
    ...(choice && { choice: withoutTable(choice) }),
    bytesBefore: [...tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0),
    bytesAfter: tensorBytes,
    fileBytes: bytes,
    matrices,
  };
}

function withoutTable({
  sensitivity: _,
  matrices: __,
  ...choice
}: ChosenWidths): NonNullable<QuantizedResult["choice"]> {
  return choice;
}

/** Most matrices of a kind that are named one by one. */
const namedFallbacks = 3;

export function describeQuantized(result: QuantizedResult): string {
  const { out, method, bytesBefore, bytesAfter, fileBytes, seconds, matrices } = result;
  const mean = matrices.reduce((sum, { error }) => sum + error, 0) / matrices.length;
  const worst = matrices.reduce((most, one) => (one.error > most.error ? one : most));
  return formatFacts([
    ["wrote", `${out} (${formatBytes(fileBytes)})`],
    [
      "weights",
      `${formatBytes(bytesBefore)} -> ${formatBytes(bytesAfter)} (${formatShare(bytesAfter, bytesBefore)})`,
    ],
    ["matrices", `${matrices.length} by ${method}`],
    ...choiceFacts(result),
    ["error", `${percent(mean)} of a matrix on average, most ${percent(worst.error)} in ${worst.module}`],
    ...fallbackFacts(matrices),
    ["time", `${seconds.toFixed(1)} s`],
  ]);
}

/** How many weights have which bits, and what was dropped. */
function choiceFacts({ choice, matrices }: QuantizedResult): (readonly [string, string])[] {
  if (!choice) return [];
  const counts = new Map<number, number>();
  for (const { format } of matrices) counts.set(format.bits, (counts.get(format.bits) ?? 0) + 1);
  const bits = [...counts].sort(([a], [b]) => a - b).map(([width, count]) => `${count} with ${width} bits`);
  const dropped = choice.dropped.reduce((sum, { experts }) => sum + experts.length, 0);
  return [
    ["chosen", `${bits.join(", ")}${choice.optimal ? "" : "; there may be a better choice"}`],
    ...(dropped > 0 ? [["dropped", `${dropped} experts`] as const] : []),
  ];
}

/** Which matrices another method was used for, by reason. */
function fallbackFacts(matrices: readonly QuantizedMatrixReport[]): (readonly [string, string])[] {
  const fallen = matrices.filter(({ fallback }) => fallback !== undefined);
  if (fallen.length === 0) return [];
  const named = fallen.slice(0, namedFallbacks).map(({ module, fallback }) => `${module} (${fallback})`);
  const rest = fallen.length > namedFallbacks ? ` and ${fallen.length - namedFallbacks} more` : "";
  return [["fallen back", `${fallen.length} matrices: ${named.join(", ")}${rest}`]];
}

function percent(share: number): string {
  return `${(100 * share).toFixed(2)} %`;
}
