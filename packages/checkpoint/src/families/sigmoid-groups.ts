import type { ConfigReader } from "../config.js";
import { expertGroups } from "./config-rules.js";
import type { RouterSettings } from "./family.js";

/** Defaults of a family that routes as DeepSeek-V3 does. */
export interface SigmoidDefaults {
  readonly groups: number;
  readonly kept: number;
  readonly scale: number;
}

/**
 * The router of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) and its heirs: chosen by sigmoid plus correction from
 * the best groups, divided by their sum if `norm_topk_prob`, then scaled.
 */
export function sigmoidSettings(defaults: SigmoidDefaults): (config: ConfigReader) => RouterSettings {
  return (config) => {
    const groups = expertGroups(config, "top2", defaults);
    const scale = config.number("routed_scaling_factor", defaults.scale);
    return {
      ...(config.boolean("norm_topk_prob", true) && { normalize: { power: 1, epsilon: 1e-20 } }),
      ...(scale !== 1 && { scale }),
      ...(groups && { groups }),
    };
  };
}
