import type { ConfigReader } from "../config.js";
import { attentionBias, denseFirst, expertGroups, sharedExpertsWidth } from "./config-rules.js";
import type { FamilyDescription, RouterSettings } from "./family.js";
import { denseNames, fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";

/**
 * DeepSeek-V2 (arXiv 2405.04434): multi-head latent attention, shared experts, and a choice that may be limited to
 * the experts of some groups. As in transformers 5, gate weights are scaled and never divided by their sum.
 */
export const deepseekV2: FamilyDescription = {
  name: "deepseek_v2",
  title: "DeepSeek-V2",
  reference: "arXiv 2405.04434",
  config: {
    experts: ["n_routed_experts", "num_experts"],
    topK: ["num_experts_per_tok"],
    groups: ["n_group"],
    groupsKept: ["topk_group"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 2048 },
  },
  tensors: { ...llamaNames, dense: denseNames },
  norm: "rms",
  attention: { kind: "mla", bias: attentionBias, interleaved: true },
  layouts: [qwenLayout(), fusedLayout()],
  router: { order: "softmax-topk", settings: routerSettings },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_experts"),
    width: sharedExpertsWidth(2),
    bias: { key: "mlp_bias", fallback: false },
  },
  denseBias: { key: "mlp_bias", fallback: false },
  moeLayers: denseFirst(0),
  notes: {
    routing:
      "softmax over all experts, then the top-k, of the groups with the largest probability if topk_method is group_limited_greedy, times routed_scaling_factor; shared experts",
    exact:
      "slicing router rows equals masking, but gate weights grow when experts go; with groups as many experts must stay in each",
  },
};

function routerSettings(config: ConfigReader): RouterSettings {
  const scale = config.number("routed_scaling_factor", 1);
  const method = config.string("topk_method") ?? "greedy";
  const scaled = scale === 1 ? {} : { scale };
  if (method === "greedy") return scaled;
  if (method !== "group_limited_greedy") {
    throw config.unsupported("DeepSeek-V2", "topk_method", method, '"greedy" or "group_limited_greedy"');
  }
  const groups = expertGroups(config, "max");
  return groups ? { ...scaled, groups } : scaled;
}
