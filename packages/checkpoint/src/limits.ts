/**
 * Bounds on what a checkpoint folder may ask of this package. A file that exceeds one is refused with
 * COPPICE_FORMAT_LIMIT before memory is spent on it.
 */
export interface FormatLimits {
  /** Bytes of one safetensors header. The reference implementation has the same cap. */
  readonly headerBytes: number;
  /** Tensors of one checkpoint. The largest public MoE checkpoints have below 100,000. */
  readonly tensors: number;
  /** Axes of a tensor. Model weights have at most 5; numpy stops at 64. */
  readonly dimensions: number;
  /** UTF-16 units of a tensor name, so that messages and indexes stay small. */
  readonly nameLength: number;
  /** Entries of a header's `__metadata__`; checkpoints have one or two. */
  readonly metadataEntries: number;
  /** UTF-16 units of all keys and values of `__metadata__` together. */
  readonly metadataLength: number;
  /** Bytes of model.safetensors.index.json; 100,000 tensors take about 10 MB. */
  readonly indexBytes: number;
  /** Files that an index may name; the largest public checkpoints have below 1,000. */
  readonly shards: number;
  /** Bytes of config.json or generation_config.json. */
  readonly configBytes: number;
  /**
   * Bytes of coppice.json, which holds the record of a plan, or one of an older release the whole plan: DeepSeek-V3's with
   * aligned units and new router rows would take some 450 MB. No runtime of JavaScript has strings much longer than that.
   */
  readonly provenanceBytes: number;
  /** Bytes of a larger coppice.json that are read when a checkpoint is opened, to find what stands before the plan. */
  readonly originBytes: number;
  /** Entries of a checkpoint folder. */
  readonly folderEntries: number;
}

export const defaultLimits: FormatLimits = {
  headerBytes: 100_000_000,
  tensors: 1_000_000,
  dimensions: 16,
  nameLength: 4096,
  metadataEntries: 10_000,
  metadataLength: 10_000_000,
  indexBytes: 250_000_000,
  shards: 10_000,
  configBytes: 16_000_000,
  provenanceBytes: 500_000_000,
  originBytes: 4_000_000,
  folderEntries: 100_000,
};
