import { CoppiceError, checkWholeNumber, throwIfAborted } from "@coppice/core";
import {
  type ChatMessage,
  type Generated,
  generateText,
  noTokenizer,
  readTokenizer,
  type SamplingOptions,
  type TextOptions,
  type TextPiece,
  type Tokenizer,
} from "@coppice/evaluate";
import { graphFileName, readExportedConfig } from "./exported-config.js";
import { type ExportedFolder, messageOf } from "./exported-folder.js";
import { graphInterface } from "./graph-interface.js";
import { KeptPrefixes } from "./kept-prefixes.js";
import type { InferenceSession, OnnxRuntime } from "./onnx-runtime.js";
import { type LayerExperts, type LoadedGraph, Ones } from "./sequence.js";
import { SpanBias } from "./span-bias.js";
import { Turns } from "./turns.js";

export interface OpenModelOptions {
  /** onnxruntime-node or onnxruntime-web, the imported package as a whole. */
  readonly runtime: OnnxRuntime;
  /** Which weights, by the name that transformers.js has for them, such as "fp32" or "q4". Default: see `graphFileName`. */
  readonly dtype?: string;
  /** Goes to ONNX Runtime as it is: execution providers, threads. */
  readonly session?: InferenceSession.SessionOptions;
  /**
   * Ended sequences whose keys and values are kept, so that prompts with the same beginning run faster. Default 1. Each
   * takes up to the memory of a full context.
   */
  readonly keptPrefixes?: number;
  /**
   * Most tokens of one run; longer prompts run in parts. A part holds up every other sequence, and cannot be stopped. Default 512.
   */
  readonly chunk?: number;
  /**
   * The runtime computes in the memory of the tensors that it is given: keys and values of graphs that `coppice export` wrote
   * are then extended where they are, not copied for every token. Default false; true for onnxruntime-node on CPUs.
   */
  readonly inPlace?: boolean;
  /** Ends the loading before ONNX Runtime begins with it; its own part cannot be stopped. */
  readonly signal?: AbortSignal;
}

/** Text, token ids that are taken as they are, or a conversation for the model's chat template. */
export type Prompt = string | Int32Array | readonly ChatMessage[];

export interface ModelTextOptions extends TextOptions {
  /** Give the chosen experts with every piece, where the model was exported with them. Default false. */
  readonly experts?: boolean;
}

export interface ModelGenerateOptions extends ModelTextOptions {
  /** Called with every piece; the next token is computed when what it returns has resolved. */
  readonly onPiece?: (piece: ModelPiece) => void | Promise<void>;
}

/** A token of a text, with the text that is certain since. */
export interface ModelPiece extends TextPiece {
  /**
   * Experts that ran to make this token, per MoE layer; with the first token those of the whole prompt. Only with
   * `ModelTextOptions.experts`.
   */
  readonly experts?: readonly LayerExperts[];
}

export interface ModelText extends Generated {
  /** Tokens of the prompt whose keys and values were kept from another text. */
  readonly cachedTokens: number;
}

/** A model that writes text. Texts may be written at the same time; their tokens take turns. */
export interface TextModel extends AsyncDisposable {
  readonly contextLength: number;
  readonly vocabSize: number;
  /** How the model's makers ask to sample, from generation_config.json. */
  readonly sampling: SamplingOptions;
  readonly hasChatTemplate: boolean;
  /**
   * Token ids of a prompt.
   * @throws COPPICE_TOKENIZER when the folder has no tokenizer, or no chat template for a conversation
   */
  encode(prompt: Prompt): Int32Array;
  /** Text of token ids, without special tokens; none where the folder has no tokenizer. */
  decode(tokens: ArrayLike<number>): string;
  /**
   * Continues a prompt. The next token is computed when the consumer asks for it; one that stops asking ends the text.
   * @throws the errors of `generateText`, COPPICE_BACKEND_FAILED, COPPICE_BACKEND_DISPOSED
   */
  stream(prompt: Prompt, options?: ModelTextOptions): AsyncGenerator<ModelPiece, ModelText, undefined>;
  /** `stream` to its end. */
  generate(prompt: Prompt, options?: ModelGenerateOptions): Promise<ModelText>;
  /** Ends all texts with COPPICE_BACKEND_DISPOSED and gives memory back. */
  dispose(): Promise<void>;
}

/**
 * Loads an exported model.
 * @throws COPPICE_FORMAT_MISSING_FILE, COPPICE_FORMAT_CONFIG, COPPICE_FORMAT_LIMIT, COPPICE_TOKENIZER, COPPICE_USAGE,
 * COPPICE_BACKEND_UNSUPPORTED for a graph that is no decoder, COPPICE_BACKEND_FAILED when ONNX Runtime refuses it
 */
export async function openExportedModel(
  folder: ExportedFolder,
  options: OpenModelOptions,
): Promise<TextModel> {
  const { runtime, dtype, keptPrefixes = 1, chunk = 512, inPlace = false, signal } = options;
  checkWholeNumber("keptPrefixes", keptPrefixes, undefined, 0);
  checkWholeNumber("chunk", chunk);
  const config = await readExportedConfig(folder);
  const name = await graphFileName(folder, config, dtype);
  // Token ids do without.
  const tokenizer = (await readTokenizer((file, limit) => folder.text(file, limit))) ?? noTokenizer;
  throwIfAborted(signal, `opening ${folder.label}`);
  const session = await createSession(folder, name, config.externalData(name), options);
  try {
    let released = false;
    const graph: LoadedGraph = {
      runtime,
      session,
      io: graphInterface(session, `${folder.label}/onnx/${name}`, config.spans),
      turns: new Turns(),
      chunk,
      ones: new Ones(),
      bias: new SpanBias(),
      inPlace: inPlace && config.isCoppiceExport,
      sparesPresent: config.sparesPresent,
      released: () => released,
    };
    return textModel(graph, config, tokenizer, new KeptPrefixes(graph, keptPrefixes), async () => {
      if (released) return;
      released = true;
      // A run cannot be interrupted; what waits behind it finds the model released.
      await graph.turns.take(() => session.release());
    });
  } catch (error) {
    await session.release();
    throw error;
  }
}

function textModel(
  graph: LoadedGraph,
  config: Awaited<ReturnType<typeof readExportedConfig>>,
  tokenizer: Tokenizer,
  prefixes: KeptPrefixes,
  release: () => Promise<void>,
): TextModel {
  const { contextLength, vocabSize, sampling } = config;
  const endTokens = new Set(config.endTokens);
  if (tokenizer.endToken !== undefined) endTokens.add(tokenizer.endToken);
  const encode = (prompt: Prompt): Int32Array => {
    if (prompt instanceof Int32Array) return prompt;
    if (typeof prompt === "string") return tokenizer.encode(prompt);
    return tokenizer.encode(tokenizer.renderChat(prompt), { special: false });
  };
  async function* stream(
    given: Prompt,
    options: ModelTextOptions = {},
  ): AsyncGenerator<ModelPiece, ModelText, undefined> {
    const { experts = false, ...text } = options;
    if (graph.released()) throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the model was disposed");
    const prompt = encode(given);
    const sequence = prefixes.begin(prompt, experts);
    const cachedTokens = sequence.tokens.length;
    try {
      const request = { tokenizer, prompt, contextLength, vocabSize, endTokens };
      const pieces = generateText(sequence, request, text);
      for (;;) {
        const { done, value } = await pieces.next();
        if (done) return { ...value, cachedTokens };
        yield experts && value.token !== undefined ? { ...value, experts: sequence.experts } : value;
      }
    } finally {
      if (graph.released()) sequence.dispose();
      else prefixes.end(sequence);
    }
  }
  const dispose = async () => {
    await release();
    prefixes.clear();
  };
  return {
    contextLength,
    vocabSize,
    sampling,
    hasChatTemplate: tokenizer.hasChatTemplate,
    encode,
    decode: (tokens) => tokenizer.decode(tokens),
    stream,
    async generate(prompt, { onPiece, ...options } = {}) {
      let text: ModelText | undefined;
      async function* whole() {
        text = yield* stream(prompt, options);
      }
      for await (const piece of whole()) await onPiece?.(piece);
      return text as ModelText;
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

async function createSession(
  folder: ExportedFolder,
  name: string,
  externalData: readonly string[],
  { runtime, session }: OpenModelOptions,
): Promise<InferenceSession> {
  const source = await folder.graph(name, externalData);
  const options: InferenceSession.SessionOptions = {
    ...session,
    ...(source.externalData.length > 0 && { externalData: source.externalData }),
  };
  try {
    return typeof source.graph === "string"
      ? await runtime.InferenceSession.create(source.graph, options)
      : await runtime.InferenceSession.create(source.graph, options);
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_FAILED",
      `ONNX Runtime does not load ${folder.label}/onnx/${name}: ${messageOf(cause)}`,
      { cause },
    );
  }
}
