import { coppice } from "../../tools/tsup-preset.js";

export default coppice({ entry: { index: "src/index.ts", worker: "src/worker.ts" }, node: true });
