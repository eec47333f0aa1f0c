import { definePlugin, type QuantizeRequest, type Quantizer } from "@coppice/core";
import * as v from "valibot";
import { fitGrid } from "./fit-grid.js";
import { packMatrix, roundToGrid } from "./grid.js";

/** Options of the plugin `rtn`. */
export interface RtnOptions {
  /** Try smaller ranges than that of the values, which the largest of them then fall out of; default true. */
  readonly clip?: boolean;
}

declare module "@coppice/core" {
  interface QuantizerPlugins {
    rtn: RtnOptions;
  }
}

/** Round to nearest: needs no data. See `fitGrid` for the grids. */
export const rtn = definePlugin({
  kind: "quantizer",
  name: "rtn",
  contract: 1,
  summary: "Rounds to the nearest code, on the grid of every group that has the least error.",
  options: v.strictObject({ clip: v.exactOptional(v.boolean(), true) }),
  create: ({ clip }): Quantizer => ({
    needs: { inputs: false },
    quantize: async (request) => ({ matrix: roundToNearest(request, clip) }),
  }),
});

/** @param clip whether smaller ranges are tried */
export function roundToNearest(request: Omit<QuantizeRequest, "inputs">, clip = true) {
  const grid = fitGrid(request, { clip });
  return packMatrix(roundToGrid(request.weights, request, grid), request, grid);
}
