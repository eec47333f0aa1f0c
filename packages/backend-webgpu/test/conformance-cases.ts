import type { MoeModel } from "@coppice/core";
import { unpackFloats } from "@coppice/core";
import {
  backendConformance,
  type ConformanceCase,
  type FixtureSource,
  memoryModel,
} from "@coppice/plugin-kit";

/** A fixture as text that a page can fetch: weights and reference outputs packed as floats. */
export interface FixtureText {
  readonly model: MoeModel;
  readonly tensors: Readonly<Record<string, string>>;
  readonly sequences: readonly (readonly number[])[];
  readonly logits: string;
  readonly greedy: readonly number[];
  readonly routers: readonly {
    readonly layer: number;
    readonly logits: string;
    readonly gates: string;
    readonly experts: readonly number[];
  }[];
}

export const fixtureNames = [
  "deepseek_v2",
  "deepseek_v3",
  "ernie4_5_moe",
  "glm4_moe",
  "gpt_oss",
  "granitemoe",
  "hunyuan_v1_moe",
  "llama4_text",
  "minimax_m2",
  "mixtral",
  "olmoe",
  "phimoe",
  "qwen2_moe",
  "qwen3_moe",
] as const;

const fetched: readonly FixtureSource[] = fixtureNames.map((name) => ({
  name,
  async load() {
    const text = (await (await fetch(`/${name}`)).json()) as FixtureText;
    const tensors = new Map(Object.entries(text.tensors).map(([key, values]) => [key, unpackFloats(values)]));
    return {
      name,
      ...memoryModel(text.model, tensors),
      golden: {
        sequences: text.sequences.map((ids) => Int32Array.from(ids)),
        logits: unpackFloats(text.logits),
        greedy: Int32Array.from(text.greedy),
        routers: text.routers.map(({ layer, logits, gates, experts }) => ({
          layer,
          logits: unpackFloats(logits),
          gates: unpackFloats(gates),
          experts: Int32Array.from(experts),
        })),
      },
    };
  },
}));

type Source = Parameters<typeof backendConformance>[0];

/**
 * The cases that run with every change. A software adapter takes a second for what a GPU does in a millisecond, so these are one or
 * two of every part; all of them are run where a kernel or the runner changed.
 */
const always: readonly RegExp[] = [
  /^[^:]+: logits are those of the reference implementation$/,
  /^mixtral: (greedy tokens|the router chooses)/,
  /^many-experts: (merging|everything together) gives what the formula/,
  /^shared-expert-gate: (targets give|runs that overlap|runs start from boundaries)/,
  /^scaled-inputs: taps agree .* without a plan/,
  /^attention plan: (on one-head-per-group|a cache that is left)/,
  /^attention masker: masks of prompts in a cache/,
  /^(an aborted signal|a disposed|two runners|a plan of another|a run that is refused)/,
];

export function conformanceCases(source: Source): ConformanceCase[] {
  return backendConformance(source, { fixtures: fetched });
}

export const isChosen = (name: string) => always.some((pattern) => pattern.test(name));
