import { coppice } from "../../tools/tsup-preset.js";

export default coppice({ entry: { index: "src/index.ts", node: "src/node.ts" }, node: ["node"] });
