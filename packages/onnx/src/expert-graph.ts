import { type Graph, GraphBuilder } from "./graph-builder.js";
import { downProjection, hiddenUnits, type MlpShape } from "./mlp.js";
import { inputWeights } from "./part-weights.js";

export interface ExpertGraphOptions {
  /** Which of its outputs are wanted, at least one. */
  readonly outputs: readonly ("units" | "output")[];
  /** Take `gates`, which multiply what the expert reads. */
  readonly scalesInput?: true;
}

/**
 * One expert over rows, whoever chose it.
 *
 * Inputs: `rows` [M, hidden]; with `scalesInput` `gates` [M, 1]; the weights of `mlp`.
 *
 * Outputs: `units` [M, width], what `down` multiplies; `output` [M, hidden].
 */
export function expertGraph(shape: MlpShape, { outputs, scalesInput }: ExpertGraphOptions): Graph {
  const { hidden, width } = shape;
  const graph = new GraphBuilder("expert");
  let rows = graph.input("rows", ["M", hidden]);
  if (scalesInput) rows = graph.node("Mul", [rows, graph.input("gates", ["M", 1])]);
  const weights = inputWeights(graph);
  const units = hiddenUnits(graph, weights, rows, shape);
  if (outputs.includes("units")) {
    graph.nodes("Identity", [units], ["units"]);
    graph.output("units", ["M", width]);
  }
  if (outputs.includes("output")) {
    graph.nodes("Identity", [downProjection(weights, units, shape)], ["output"]);
    graph.output("output", ["M", hidden]);
  }
  return graph.build();
}
