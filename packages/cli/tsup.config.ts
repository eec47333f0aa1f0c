import { coppice } from "../../tools/tsup-preset.js";

export default coppice({ entry: { index: "src/index.ts", bin: "src/bin.ts" }, node: true });
