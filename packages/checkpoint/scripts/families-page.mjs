// Writes docs/reference/families.md from the family descriptions: build the package, then `pnpm --filter
// @coppice/checkpoint families-page`. A test fails when the page is out of date.
import { readFile, writeFile } from "node:fs/promises";
import { argv } from "node:process";
import { fileURLToPath } from "node:url";
import { families, familyPaddingObstacle, verifyTolerance } from "@coppice/checkpoint";

const page = new URL("../../../docs/reference/families.md", import.meta.url);

const intro = `# Model families

<!-- Generated from packages/checkpoint/src/families by packages/checkpoint/scripts/families-page.mjs. -->

A family is recognised by \`model_type\` in \`config.json\`, and the way its experts lie in the files by the names of the tensors. A config without
\`model_type\` is recognised when exactly one family describes all of its tensors. An unknown \`model_type\` is an error
(\`COPPICE_FAMILY_UNKNOWN\`), even when the names fit a known family, because families with equal names route differently.

Executed families run on the backends: searching, calibrating, evaluating, \`verify\`. Families that are edited only are inspected, pruned, merged and
written; backends refuse them with \`COPPICE_BACKEND_UNSUPPORTED\` and the reason, and \`verify\` compares their files tensor by tensor.
`;

const common = `## What holds for all of them

* The output keeps the layout of the source. A checkpoint that mixes layouts, lacks an expert, or has a router whose rows are not as many as its
  experts is refused with \`COPPICE_FORMAT_EXPERTS\` before anything else is done.
* Fused layouts are those that transformers 5 holds in memory and writes with \`save_original_format=False\`, or that the family is published in.
* A model around a language model (nested \`text_config\`, names that begin with \`language_model.model.\` or \`model.language_model.\`) is read as
  its language model: it runs when that is of an executed family, and everything else (vision towers, projectors) is carried along untouched.
* Positions: \`rope_parameters\` as transformers 5 writes them, or the older \`rope_theta\` and \`rope_scaling\`; the kinds default, linear, dynamic,
  yarn, llama3 and longrope, by the rules of transformers 5. Phi-3.5-MoE takes the short divisors of longrope at every length, as transformers 5 does.
* Missing keys, but for the number of experts, have the defaults of the family's configuration class in transformers 5. Counts may be lists with one entry per layer (HunYuan, and
  the runtime layout that Coppice writes).
* A head that lies in the files is the head, whatever \`tie_word_embeddings\` says; where there is none, it is the embedding if the config, or the one
  around it, says so.
* Text ends at \`eos_token_id\` of \`generation_config.json\`, else of \`config.json\`: one number or a list.

## Quantized checkpoints

| weights | siblings | what Coppice does |
|---|---|---|
| fp8 | \`weight_scale_inv\` in blocks (\`weight_block_size\`, 128 x 128 when not stated), \`weight_scale\` one per row or one for all | runs; moves without decoding; merges anew in the same blocks |
| MXFP4 (GPT-OSS) | \`*_blocks\`, \`*_scales\` | runs; moves without decoding; merges anew in the same blocks |
| compressed-tensors \`pack-quantized\` of 2, 4 or 8 bits, one scale per group or row, columns in their order | \`weight_packed\`, \`weight_scale\`, \`weight_shape\`, \`weight_zero_point\` | runs; moves without decoding; never merged |
| GPTQ, AWQ (\`qweight\`, \`qzeros\`, \`scales\`, \`g_idx\`), other compressed-tensors packs, int8, bitsandbytes | all siblings | edited only: experts are dropped, renumbered and reordered, never merged |

Every expert must have the same siblings; a missing one, or one of no known kind, is refused with \`COPPICE_FORMAT_QUANTIZED\`.

## Layers for multi-token prediction

They are found by name, have experts of their own and follow the plan of the last decoder layer with experts: they keep and merge the same experts. New
router rows, and merges by hidden units, are fitted to inputs and units of the decoder layer, so there they keep their own rows, and the slot's expert
unchanged. Other numbers of them than the config
states, or of their experts, are refused with \`COPPICE_FORMAT_MTP\`; none at all is no fault.

## Adding a family

A family whose computation is known is one value of type \`FamilyDescription\` in \`packages/checkpoint/src/families\`: names of tensors and config
keys, layouts, and small functions for what configs express as rules (sliding windows, layers with experts, settings of the router). Add it to
\`families\` in \`families.ts\` and its conformance files to the tests, build, and run \`pnpm --filter @coppice/checkpoint families-page\`.
`;

/** @type {import("./families-page.mjs").familiesPage} */
export function familiesPage(all) {
  const executed = all.filter(({ editOnly }) => editOnly === undefined);
  const edited = all.filter(({ editOnly }) => editOnly !== undefined);
  const table = [
    "| family | `model_type` | | layouts | layers of different sizes in stock output |",
    "|---|---|---|---|---|",
    ...all.map((family) =>
      row([
        `[${family.title}](#${anchor(family.title)})`,
        code([family.name, ...(family.aliases ?? [])]),
        family.editOnly === undefined ? "executed" : "edited only",
        [...new Set(family.layouts.map(({ kind }) => (kind === "separate" ? "per expert" : "fused")))].join(
          ", ",
        ),
        familyPaddingObstacle(family) === undefined ? "exact" : "no",
      ]),
    ),
  ];
  return [
    intro,
    `${table.join("\n")}\n`,
    common,
    "## Executed families\n",
    ...executed.map(section),
    "## Families that are edited only\n",
    ...edited.map(section),
  ].join("\n");
}

/** @param {import("@coppice/checkpoint").FamilyDescription} family */
function section(family) {
  const { config, notes } = family;
  const obstacle = familyPaddingObstacle(family);
  const verify = verifyTolerance(family);
  const lines = [
    `### ${family.title}\n`,
    `\`model_type\` ${code([family.name, ...(family.aliases ?? [])])}. ${family.reference}.` +
      `${family.editOnly === undefined ? "" : ` Edited only: ${family.editOnly}.`}\n`,
    `* Routing: ${keys(notes.routing)}.`,
    `* Pruned: ${keys(notes.exact)}.`,
    obstacle === undefined
      ? "* Layers of different sizes: smaller ones are filled up, exactly, with experts that are never chosen."
      : `* Layers of different sizes: not in stock output, because ${obstacle}. Keep as many experts in every layer, or write the runtime layout.`,
    ...(verify
      ? [`* \`verify\`: up to ${verify.tolerance}, because ${verify.reason}.`]
      : ["* `verify`: tensor by tensor, exact."]),
    `* Config: experts ${code(config.experts)}; top-k ${code(config.topK)}; rows of gate and up ${code(config.expertWidth)}` +
      `${config.denseWidth ? `, of dense layers ${code(config.denseWidth)}` : ""}` +
      `${config.groups ? `; groups ${code([...config.groups, ...(config.groupsKept ?? [])])}` : ""}` +
      `${config.capacity ? `; capacities ${code(config.capacity)}` : ""}.`,
    ...(family.mtp
      ? [
          `* Multi-token prediction: ${family.mtp.at === "layers" ? "decoder layers after the last one" : `layers under ${code(family.mtp.at)}`}.`,
        ]
      : []),
    "",
    "| layout | what | tensor |",
    "|---|---|---|",
    ...family.layouts.flatMap(layoutRows),
    "",
  ];
  return lines.join("\n");
}

/** @param {import("@coppice/checkpoint").ExpertLayout} layout */
function layoutRows(layout) {
  const name = layout.kind === "separate" ? "per expert" : "fused";
  const rows = [[name, "router", code([layout.router])]];
  if (layout.routerBias) rows.push(["", "router bias", code([layout.routerBias])]);
  if (layout.correction) rows.push(["", "correction", code([layout.correction])]);
  if (layout.kind === "separate") {
    const { gate, up, down } = layout.experts;
    if (gate) rows.push(["", "gate", code([`${gate}.weight`])]);
    rows.push(["", "up", code([`${up}.weight`])], ["", "down", code([`${down}.weight`])]);
    return rows.map(row);
  }
  const shapes = {
    rows: "[experts, 2 width, hidden], gate rows first",
    columns: "[experts, hidden, 2 width], gate columns first",
    interleaved:
      "[experts, hidden, 2 width], gate in even columns; in MXFP4 [experts, 2 width, hidden], gate in even rows",
    either: "[experts, 2 width, hidden] or transposed, as the shape says",
  };
  const stack = layout.flat ? "[experts · width, hidden]" : "[experts, width, hidden]";
  if (layout.gateUp) rows.push(["", "gate and up", `${code([layout.gateUp])} ${shapes[layout.order]}`]);
  if (layout.gate) rows.push(["", "gate", `${code([layout.gate])} ${stack}`]);
  if (layout.up) rows.push(["", "up", `${code([layout.up])} ${stack}`]);
  const isColumns = layout.downColumns || layout.order === "columns" || layout.order === "interleaved";
  const down = layout.flat ? stack : isColumns ? "[experts, width, hidden]" : "[experts, hidden, width]";
  rows.push([
    "",
    "down",
    `${code([layout.down])} ${layout.order === "either" ? "[experts, hidden, width] or transposed" : down}`,
  ]);
  if (layout.biases) rows.push(["", "biases", "the same names and `_bias`"]);
  return rows.map(row);
}

/** Marks config keys in a sentence. @param {string} text */
function keys(text) {
  return text.replace(/\b[a-z]+(_[a-z]+)+\b/g, "`$&`");
}

/** @param {readonly string[]} names */
function code(names) {
  return names.map((name) => `\`${name}\``).join(", ");
}

/** @param {readonly string[]} cells */
function row(cells) {
  return `| ${cells.join(" | ")} |`;
}

/** @param {string} title */
function anchor(title) {
  return title
    .toLowerCase()
    .replace(/[^a-z0-9 -]/g, "")
    .replaceAll(" ", "-");
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  const text = familiesPage(families);
  const before = await readFile(page, "utf8").catch(() => "");
  if (before !== text) await writeFile(page, text);
}
