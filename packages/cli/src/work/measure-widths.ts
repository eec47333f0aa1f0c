import { measureSensitivity, parseSensitivity, type Sensitivity } from "@coppice/allocate";
import {
  CoppiceError,
  dequantizeMatrix,
  type QuantizedFormat,
  type Quantizer,
  RunEmitter,
} from "@coppice/core";
import { divergence } from "@coppice/evaluate";
import type { ModelMatrix } from "@coppice/quantizers";
import type { CliContext } from "../context.js";
import { backendHere } from "./backend-here.js";
import type { PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";
import { probeData } from "./probe-data.js";
import { readTask } from "./task-file.js";
import { readJsonFile } from "./text-file.js";

export interface MeasureOptions extends Omit<PoolOptions, "workers"> {
  /** A file with a table that was measured before. */
  readonly sensitivity?: string;
  readonly data?: string;
  readonly limit?: number;
  /** Matrices of an expert may get different widths, and are measured one after the other. */
  readonly mixed?: true;
}

export interface MeasureRequest {
  readonly opened: OpenModel;
  readonly quantizer: Quantizer;
  readonly matrices: readonly ModelMatrix[];
  /** Those to measure. */
  readonly formats: readonly QuantizedFormat[];
}

/** Tables have some hundred bytes per matrix and width. */
const tableBytes = 256 * 1024 * 1024;

/** What every matrix loses at every width: from a file, or measured on data by quantizing without what inputs would tell. */
export async function widthSensitivity(
  { opened, quantizer, matrices, formats }: MeasureRequest,
  options: MeasureOptions,
  context: CliContext,
): Promise<Sensitivity> {
  const { model, weights } = opened.checkpoint;
  const { signal } = context;
  if (options.sensitivity !== undefined) {
    const path = context.path(options.sensitivity);
    const value = await readJsonFile(path, tableBytes, "COPPICE_STATS_FORMAT", signal);
    const holds = typeof value === "object" && value !== null && "sensitivity" in value;
    const found = parseSensitivity(holds ? value.sensitivity : value, model);
    checkMeasured(found, matrices, options.sensitivity);
    return found;
  }
  if (options.data === undefined) {
    throw new CoppiceError("COPPICE_USAGE", "what fewer bits lose has to be measured on text", {
      hint: "give --data with a task file or text, or --sensitivity with what an earlier --plan-out wrote",
    });
  }
  const data = await probeData(await readTask(options.data, context), opened, options.limit);
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const found = await measureSensitivity({
    model,
    weights,
    backend: await backendHere(options, context),
    matrices: matrices.map((matrix) => ({ ...matrix, name: matrix.weight.name })),
    bits: formats.map(({ bits }) => bits),
    quantized: async ({ name, weight }, bits) => {
      const [rows, columns] = weight.shape as [number, number];
      const format = formats.find((one) => one.bits === bits) as QuantizedFormat;
      const values = await weights.read(weight, { signal });
      const scales = weight.dtype === "BF16" ? "BF16" : "F16";
      const { matrix } = await quantizer.quantize({
        name,
        weights: values,
        rows,
        columns,
        format,
        scales,
        signal,
      });
      return dequantizeMatrix(matrix);
    },
    quantize: options.mixed ? "matrices" : "experts",
    ...data,
    divergence,
    emitter,
    signal,
  });
  context.out.settle();
  return found;
}

/** @throws COPPICE_STATS_FORMAT when a table lacks matrices of the model */
function checkMeasured(
  { matrices: found }: Sensitivity,
  matrices: readonly ModelMatrix[],
  file: string,
): void {
  const names = new Set(found.map(({ name }) => name));
  const missing = matrices.find(({ weight }) => !names.has(weight.name));
  if (!missing && found.length === matrices.length) return;
  throw new CoppiceError(
    "COPPICE_STATS_FORMAT",
    `${file} has ${found.length} matrices${missing ? `, without ${missing.weight.name}` : ""}; the model has ${matrices.length}`,
  );
}
