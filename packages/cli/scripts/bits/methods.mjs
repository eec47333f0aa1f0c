import { modelPath } from "@coppice/demo-model";
import { coppice } from "./judge.mjs";

/** Most that the mean may lose. */
const limits = { 8: 0.005, 4: 0.02 };

/** What 8 and 4 bits lose, by the command. */
const rows = [
  { name: "8 bits by rtn", bits: 8, args: ["--bits", "8"] },
  { name: "4 bits by rtn, head as it is", args: ["--bits", "4", "--head-bits", "keep"] },
  { name: "4 bits by rtn, head of 8", args: ["--bits", "4"] },
  { name: "4 bits by rtn, head of 4", args: ["--bits", "4", "--head-bits", "4"] },
  {
    name: "4 bits by gptq, groups of 16",
    bits: 4,
    args: ["--bits", "4", "--group", "16", "--method", "gptq"],
  },
  {
    name: "4 bits by gptq, groups of 16, zeros",
    bits: 4,
    args: ["--bits", "4", "--group", "16", "--asymmetric", "--method", "gptq"],
  },
];

export async function checkMethods(bench) {
  bench.head("what bits lose");
  const best = new Map();
  for (const { name, bits, args } of rows) {
    const out = bench.place(name);
    const learns = args.includes("gptq") ? ["--data", bench.mixed] : [];
    const { bytesAfter } = coppice("quantize", modelPath, ...args, ...learns, "--out", out);
    const { mean } = await bench.showFolder(name, out, bytesAfter);
    if (bits) best.set(bits, Math.max(mean, best.get(bits) ?? 0));
  }
  for (const [bits, mean] of best) {
    const limit = limits[bits];
    const lost = bench.full.mean - mean;
    bench.demand(lost <= limit, `${bits} bits lose ${lost.toFixed(4)} of the mean, at most ${limit}`);
  }
}
