import type { FamilyDescription } from "./family.js";
import { glm4Moe } from "./glm4-moe.js";

/** The language model of GLM-4.5V (arXiv 2507.01006): GLM-4.5 with rotation by three interleaved positions. */
export const glm4vMoe: FamilyDescription = {
  ...glm4Moe,
  name: "glm4v_moe_text",
  aliases: ["glm4v_moe"],
  title: "GLM-4.5V",
  reference: "arXiv 2507.01006",
  editOnly: "GLM-4.5V's rotation by sections is not implemented",
  attention: { kind: "other", name: "grouped-query attention rotated by sections" },
};
