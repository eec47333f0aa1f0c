// Slow check of quantized models: what 8 and 4 bits lose on unseen samples; the demo model at 3 bits per weight on average, chosen by
// what every part loses, against mixes of 2 and 4 bits of the same bytes; and what of it fits 10 MB.
// Usage: npm run check:bits [-- [<samples per task>] [--quick] [--only methods|average|small]]
// All decisions are made on search samples, all figures are of others. `--quick` only tries whether everything runs.
import { parseArgs } from "node:util";
import { checkAverage } from "./bits/average.mjs";
import { openBench } from "./bits/judge.mjs";
import { checkMethods } from "./bits/methods.mjs";
import { checkSmall } from "./bits/small.mjs";

const parts = { methods: checkMethods, average: checkAverage, small: checkSmall };
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { quick: { type: "boolean", default: false }, only: { type: "string" } },
});
const { quick, only } = values;
if (only !== undefined && !Object.hasOwn(parts, only)) {
  console.error(`There is no part "${only}". Known: ${Object.keys(parts).join(", ")}.`);
  process.exit(2);
}
/** Search samples of every task that what bits lose is measured on, and what searches for experts may cost. */
const effort = quick ? { probes: 1, samples: 4, plans: 6 } : { probes: 6, samples: 100, plans: 120 };
const bench = await openBench({ samples: Number(positionals[0] ?? (quick ? 2 : 50)) });
try {
  for (const [name, check] of Object.entries(parts)) {
    if (only === undefined || only === name) await check(bench, effort);
  }
} finally {
  await bench.close();
}
process.exit(bench.failed() && !quick ? 1 : 0);
