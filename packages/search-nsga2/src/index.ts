export { type Nsga2Options, nsga2 } from "./nsga2.js";
