import type {
  CollectedPart,
  CollectedStatistics,
  CollectionOptions,
  StreamEstimate,
} from "@coppice/calibrate";
import type {
  AttentionPlan,
  MoeModel,
  Plan,
  PlanScores,
  Progress,
  SerializedError,
  WorkCounters,
} from "@coppice/core";
import type {
  DraftGroup,
  EncodedTask,
  Generated,
  GenerateOptions,
  Metric,
  Objective,
  PositionSums,
  PositionTask,
  SampleScores,
  Task,
  WrittenSamples,
} from "@coppice/evaluate";
import type { AttentionSource, BackendSource } from "./plugin-source.js";

/** Which part of a task's micro-batches a worker owns. */
export interface Shard {
  readonly index: number;
  readonly count: number;
}

export interface TaskParams {
  readonly task: Task;
  readonly limit?: number;
  readonly chat?: boolean;
}

export interface CalibrationData extends TaskParams {
  /** Leave the answers out. */
  readonly promptsOnly: boolean;
}

/** What to collect on which token ids. */
export type DataCollection = Omit<CollectionOptions, "signal">;

export interface LayerStreamParams {
  readonly data: CalibrationData;
  readonly collection: Omit<DataCollection, "sequences">;
  /** Folder of the work. */
  readonly work: string;
  readonly memory?: number;
  readonly engine?: string;
}

/** What a worker can do: name -> what it is given, and what it answers. All of it survives structured clone. */
export interface WorkerMethods {
  /** Loads the model; comes first. */
  open: { params: { model: string; backend: BackendSource }; result: { model: MoeModel } };
  /** Makes an evaluator for the worker's shard, known by a name from then on. */
  createScorer: {
    params: TaskParams & {
      scorer: number;
      objective?: Objective;
      prefixCacheBytes?: number;
      attention?: AttentionPlan;
      shard: Shard;
    };
    /** Its samples of every part, and `Evaluator.busyParts`: where there are any, `evaluate` may be called besides itself. */
    result: { parts: readonly Int32Array[]; busyParts: number | undefined };
  };
  disposeScorer: { params: { scorer: number }; result: undefined };
  evaluate: {
    params: { scorer: number; plan: Plan; part: number | undefined };
    result: PlanScores & { work: WorkCounters };
  };
  scoreTask: {
    params: TaskParams & { metric?: string; plan?: Plan; attention?: AttentionSource; shard: Shard };
    result: { metric: Metric; total: number; scores: SampleScores };
  };
  scorePositions: {
    params: PositionTask & { plan?: Plan; attention?: AttentionSource; shard: Shard };
    result: PositionSums;
  };
  /** The samples as token ids. */
  calibrationData: { params: CalibrationData; result: Int32Array[] };
  /** Prompts with what the model writes behind them. */
  continuePrompts: { params: { prompts: readonly Int32Array[]; maxTokens?: number }; result: Int32Array[] };
  encodeTask: { params: TaskParams; result: EncodedTask };
  writeGroup: { params: DraftGroup; result: WrittenSamples };
  /** Tells the statistics of the parts of the data whose number is the shard's index modulo its count. */
  collectStatistics: { params: { collection: DataCollection; shard: Shard }; result: undefined };
  /** Loads some layers at a time; needs no `open`. */
  collectByLayers: {
    params: LayerStreamParams & { model: string; backend: BackendSource };
    result: CollectedStatistics;
  };
  generate: {
    params: {
      prompt: string | Int32Array;
      options: Omit<GenerateOptions, "onToken" | "signal" | "attention"> & { attention?: AttentionSource };
    };
    result: Generated;
  };
  /** One array per wanted position. */
  logits: {
    params: { sequence: Int32Array; all: boolean; plan?: Plan; attention?: AttentionPlan };
    result: Float32Array[];
  };
}

export type Method = keyof WorkerMethods;

/** What workers tell while they work. */
export type WorkerEvent =
  | { readonly type: "done"; readonly count: number; readonly total: number }
  | { readonly type: "part"; readonly part: CollectedPart }
  | { readonly type: "estimate"; readonly estimate: StreamEstimate }
  | { readonly type: "progress"; readonly progress: Progress }
  | { readonly type: "token"; readonly token: number; readonly text: string };

export type ToWorker =
  | { readonly type: "call"; readonly id: number; readonly method: Method; readonly params: unknown }
  | { readonly type: "abort"; readonly id: number };

export type FromWorker =
  | { readonly type: "result"; readonly id: number; readonly result: unknown }
  | { readonly type: "error"; readonly id: number; readonly error: SerializedError }
  | { readonly type: "event"; readonly id: number; readonly event: WorkerEvent };
