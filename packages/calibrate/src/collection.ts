import {
  CoppiceError,
  checkWholeNumber,
  type ExtraField,
  extraFields,
  type LayerStatistics,
  layerSizes,
  type MoeLayer,
  type MoeModel,
  moeLayers,
  type Tap,
  type TapField,
} from "@coppice/core";
import {
  type CollectedStatistics,
  type DataKind,
  emptyLayer,
  type SourceOptions,
  type StatisticsSource,
} from "./collected-statistics.js";
import { type Batch, cutParts, type Part } from "./data-parts.js";
import { extraTapFields, sampleTapFields } from "./extra-sums.js";
import { LayerCollector } from "./layer-collector.js";
import { hashSequences } from "./sequence-hash.js";
import { checkStatisticsSize, type StatisticsContent } from "./statistics-size.js";
import { checkedSample, type SampleOptions, selectSample } from "./token-sample.js";

/** What to collect on which data, however the model runs. */
export interface CollectionOptions {
  /**
   * Token ids: stretches of text, or prompts with answers behind them. Every token counts once, whichever
   * sequence it stands in; there is no padding.
   */
  readonly sequences: readonly Int32Array[];
  /** What the data is called in the statistics file, such as a file name. */
  readonly name: string;
  /** What the sequences are. @default "text" */
  readonly kind?: DataKind;
  /** How the data became tokens, for the record. */
  readonly sourceOptions?: SourceOptions;
  /**
   * What to collect beside the rest: `change` and `peak` take some time, `outputSum` also memory, experts x hidden values
   * of 8 bytes per layer. `everyOutputSum`, `outputGram`, `outputCosine` and `unitSquares` run all experts on all tokens.
   */
  readonly extras?: readonly ExtraField[];
  /** Single tokens to keep; default none. */
  readonly sample?: SampleOptions;
  /**
   * Most tokens of one run, which bounds memory; a longer sequence runs alone. Results do not depend on it beyond
   * the rounding of sums.
   * @default 4096
   */
  readonly tokenBudget?: number;
  /**
   * Consecutive parts that the data is cut into, which are summed by themselves and then together, so that several
   * runners can share them. Runs of equal parts and token budget give equal bits.
   * @default 1
   */
  readonly parts?: number;
  readonly signal?: AbortSignal;
}

/** Options that are checked, the data cut into batches, and the tokens of the sample chosen. */
export class Collection {
  readonly model: MoeModel;
  readonly layers: readonly MoeLayer[];
  /** Layer before which runs end: layers behind the last MoE layer show nothing. */
  readonly end: number;
  /** Fields in file order, each once. */
  readonly content: StatisticsContent;
  /** Those that have tokens. */
  readonly parts: readonly Part[];
  /** Tokens of the largest batch and of the longest sequence. */
  readonly most: { readonly batch: number; readonly sequence: number };
  readonly source: StatisticsSource;
  /** Tokens that all experts run on, beside those that they were chosen for. */
  readonly allExperts: "none" | "sample" | "all tokens";
  readonly #sampleLimit: number;
  readonly #fields: readonly TapField[];

  /** @throws COPPICE_TASK_EMPTY, COPPICE_TASK_TOO_LONG, COPPICE_USAGE, COPPICE_FAMILY_UNSUPPORTED */
  constructor(model: MoeModel, options: CollectionOptions) {
    const { sequences, name, kind = "text", sourceOptions = {}, tokenBudget = 4096, parts = 1 } = options;
    const tokens = checkedTokens(sequences, model);
    if (!(tokenBudget >= 1)) {
      throw new CoppiceError("COPPICE_USAGE", `tokenBudget is ${tokenBudget}, expected at least 1`);
    }
    this.model = model;
    this.layers = moeLayers(model);
    this.end = Math.max(...this.layers.map(({ index }) => index)) + 1;
    this.#sampleLimit = options.sample?.limit ?? 0;
    this.content = {
      extras: extraFields.filter((field) => options.extras?.includes(field)),
      sample: checkedSample(options.sample),
      sampled: Math.min(tokens, this.#sampleLimit),
    };
    checkStatisticsSize(model, this.content);
    const ofExtras = this.content.extras.flatMap((extra) => extraTapFields[extra]);
    const ofSample = this.content.sample.flatMap((field) => sampleTapFields[field]);
    this.#fields = [
      ...new Set<TapField>(["routerLogits", "routing", "expertNorms", ...ofExtras, ...ofSample]),
    ];
    this.allExperts = ofExtras.some(isEvery) ? "all tokens" : ofSample.some(isEvery) ? "sample" : "none";
    const sample = options.sample ? selectSample(sequences, options.sample.limit) : [];
    this.parts = cutParts(sequences, checkWholeNumber("parts", parts), tokenBudget, sample);
    const batches = this.parts.flatMap((part) => part.batches);
    this.most = {
      batch: batches.reduce((most, batch) => Math.max(most, batch.tokens), 0),
      sequence: sequences.reduce((most, { length }) => Math.max(most, length), 0),
    };
    this.source = {
      name,
      hash: hashSequences(sequences),
      sequences: sequences.length,
      tokens,
      kind,
      weight: 1,
      options: sourceOptions,
    };
  }

  /** Collectors of the sums of layers over one part, by layer. */
  collectors(part: Part, layers: readonly MoeLayer[] = this.layers): Map<number, LayerCollector> {
    const sample = { fields: this.content.sample, tokens: part.sample.length };
    return new Map(
      layers.map((layer) => [
        layer.index,
        new LayerCollector(
          emptyLayer(layer.index, layerSizes(layer, this.model), this.content.extras, sample),
          {
            scalesInput: layer.feedForward.router.scalesInput === true,
            residualScale: this.model.residualScale ?? 1,
          },
        ),
      ]),
    );
  }

  /** Shows a run over a batch to collectors by layer; `finish`, to be called after it, throws what was wrong. */
  tap(batch: Batch, collectors: ReadonlyMap<number, LayerCollector>): { tap: Tap; finish(): void } {
    const { sampled } = batch;
    const noneWanted = this.allExperts !== "all tokens" && !sampled;
    const fields = noneWanted ? this.#fields.filter((field) => !isEvery(field)) : this.#fields;
    const every = {
      outputs: fields.includes("everyOutput"),
      units: fields.includes("everyUnit"),
    };
    const mask =
      sampled && this.allExperts === "sample"
        ? Uint8Array.from(sampled, (row) => (row < 0 ? 0 : 1))
        : undefined;
    let failure: unknown;
    return {
      tap: {
        fields,
        ...(mask && { every: mask }),
        onLayer(shown) {
          // Thrown after the run, so that no backend has to survive a callback that throws.
          try {
            if (failure === undefined) collectors.get(shown.layer)?.add(shown, every, sampled);
          } catch (error) {
            failure = error;
          }
        },
      },
      finish() {
        if (failure !== undefined) throw failure;
      },
    };
  }

  /** Statistics of one part from those of its layers. */
  partStatistics(part: Part, layers: readonly LayerStatistics[]): CollectedStatistics {
    return {
      model: this.model.fingerprint,
      tokens: part.tokens,
      sources: [this.source],
      layers,
      ...(this.content.sample.length > 0 && {
        sample: {
          limit: this.#sampleLimit,
          priorities: Float64Array.from(part.sample, ({ priority }) => priority),
        },
      }),
    };
  }
}

function isEvery(field: TapField): boolean {
  return field === "everyOutput" || field === "everyUnit";
}

function checkedTokens(sequences: readonly Int32Array[], model: MoeModel): number {
  let total = 0;
  sequences.forEach(({ length }, i) => {
    if (length === 0) throw new CoppiceError("COPPICE_TASK_EMPTY", `sequence ${i} of the data has no tokens`);
    if (length > model.contextLength) {
      throw new CoppiceError(
        "COPPICE_TASK_TOO_LONG",
        `sequence ${i} of the data has ${length} tokens, the model's context is ${model.contextLength}`,
        { hint: "split long text into pieces of at most the context", details: { sequence: i, length } },
      );
    }
    total += length;
  });
  if (total === 0) throw new CoppiceError("COPPICE_TASK_EMPTY", "the data has no sequences");
  if (moeLayers(model).length === 0) {
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      "the model has no MoE layers to collect statistics of",
    );
  }
  return total;
}
