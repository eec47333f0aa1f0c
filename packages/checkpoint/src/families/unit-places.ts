import type { TensorRef } from "@coppice/core";
import type { UnitPlaces } from "./expert-tensors.js";
import type { SeparateLayout, StackedLayout } from "./family.js";

/** Which stacks of a layout lie as linear layers have them, [outputs, inputs]. */
export interface StackOrder {
  /** Gate and up. */
  readonly rows: boolean;
  readonly downRows: boolean;
}

/** @param stacks of gate and up (or up alone) and of down, each as it is stored; `isFp4`: rows are always outputs */
export function stackOrder(
  layout: StackedLayout,
  first: { readonly shape: TensorRef["shape"]; readonly isFp4: boolean },
  down: { readonly shape: TensorRef["shape"]; readonly isFp4: boolean },
): StackOrder {
  const rows =
    first.isFp4 || layout.order === "rows" || (layout.order === "either" && fitRows(first.shape, down.shape));
  return { rows, downRows: down.isFp4 || (rows && !layout.downColumns) };
}

/** At most one of the two matrices can be square in both of its readings, so the other one decides. */
function fitRows(first: TensorRef["shape"], down: TensorRef["shape"]): boolean {
  return first[2] === down[1] && first[1] === 2 * (down[2] as number);
}

/** @param end what follows the expert's number in the tensor's name */
export function unitPlaces({ experts }: SeparateLayout, end: string): UnitPlaces | undefined {
  const down = experts.down.slice(experts.down.indexOf("{e}.") + "{e}.".length);
  if (!end.startsWith(`${down}.`)) return { factors: "rows", axis: 0, matrices: 1 };
  return end === `${down}.bias` ? undefined : { factors: "columns", axis: 1, matrices: 1 };
}

/**
 * @param pattern of the layout, for the stack
 * @param isBias true: the stack holds the biases that belong to it
 */
export function stackedUnitPlaces(
  layout: StackedLayout,
  { rows, downRows }: StackOrder,
  pattern: string,
  isBias: boolean,
): UnitPlaces | undefined {
  if (pattern === layout.down) {
    return isBias ? undefined : { factors: "columns", axis: downRows ? 1 : 0, matrices: 1 };
  }
  return {
    factors: "rows",
    axis: rows || isBias ? 0 : 1,
    matrices: pattern === layout.gateUp ? 2 : 1,
    ...(layout.order === "interleaved" && { interleaved: true }),
  };
}
