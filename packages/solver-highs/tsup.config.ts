import { coppice } from "../../tools/tsup-preset.js";

export default coppice();
