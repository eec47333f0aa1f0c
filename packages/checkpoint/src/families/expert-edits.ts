import type { TensorRef } from "@coppice/core";
import type { ConfigReader } from "../config.js";
import type { Detected } from "./detect.js";
import type { ExpertTensors, SeparateTensor, StackedTensor } from "./expert-tensors.js";
import { tensorName } from "./family.js";

/** Lists what surgery edits of the given decoder layers; every tensor has been checked by `describeModel`. */
export function findEdits(
  { family, layout }: Detected,
  config: ConfigReader,
  layers: readonly number[],
  tensors: ReadonlyMap<string, TensorRef>,
): ExpertTensors[] {
  const experts = config.integer(family.config.experts);
  const get = (name: string) => tensors.get(name) as TensorRef;
  return layers.map((layer) => {
    const separate: SeparateTensor[] = [];
    const stacked: StackedTensor[] = [];
    if (layout.kind === "separate") {
      for (const name of [layout.experts.gate, layout.experts.up, layout.experts.down]) {
        const pattern = tensorName(name, layer);
        for (let expert = 0; expert < experts; expert++) {
          const tensor = get(tensorName(name, layer, expert));
          separate.push({ tensor, expert, pattern, merge: "plain" });
        }
      }
    } else {
      for (const name of [layout.gateUp, layout.down]) {
        stacked.push({ tensor: get(tensorName(name, layer)), rowsPerExpert: 1, merge: "plain" });
      }
    }
    return {
      layer,
      label: `layer ${layer}`,
      experts,
      rows: [{ tensor: get(tensorName(layout.router, layer)), axis: 0, role: "weight" }],
      separate,
      stacked,
    };
  });
}
