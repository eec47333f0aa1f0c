import { dbrx } from "./dbrx.js";
import { deepseekV2 } from "./deepseek-v2.js";
import { deepseekV3 } from "./deepseek-v3.js";
import { ernie45Moe } from "./ernie4-5-moe.js";
import type { FamilyDescription } from "./family.js";
import { glm4Moe } from "./glm4-moe.js";
import { glm4vMoe } from "./glm4v-moe.js";
import { gptOss } from "./gpt-oss.js";
import { granitemoe } from "./granitemoe.js";
import { hunyuanV1Moe } from "./hunyuan-v1-moe.js";
import { jamba } from "./jamba.js";
import { llama4 } from "./llama4.js";
import { minimaxM2 } from "./minimax-m2.js";
import { mixtral } from "./mixtral.js";
import { nemotronH } from "./nemotron-h.js";
import { olmoe } from "./olmoe.js";
import { phimoe } from "./phimoe.js";
import { qwen2Moe } from "./qwen2-moe.js";
import { qwen3Moe } from "./qwen3-moe.js";
import { qwen3Next, qwen35Moe } from "./qwen3-next.js";

/** Every family that this release reads: those that it runs, then those that it only edits. */
export const families: readonly FamilyDescription[] = [
  mixtral,
  qwen2Moe,
  qwen3Moe,
  olmoe,
  deepseekV2,
  deepseekV3,
  phimoe,
  granitemoe,
  gptOss,
  glm4Moe,
  ernie45Moe,
  minimaxM2,
  llama4,
  hunyuanV1Moe,
  dbrx,
  jamba,
  qwen3Next,
  qwen35Moe,
  nemotronH,
  glm4vMoe,
];
