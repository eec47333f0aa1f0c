import type { QuantizedFormat } from "@coppice/core";

/** A module and how it is quantized. */
export interface QuantizedModule {
  readonly module: string;
  /** Embeddings are no linear layers. */
  readonly isEmbedding: boolean;
  readonly format: QuantizedFormat;
}

/**
 * `quantization_config` of a checkpoint in the layout `pack-quantized` of compressed-tensors: the most common format is
 * that of all linear layers but those in `ignore`; every other format lists its modules by name.
 * @param ignored linear layers that stay as they are
 */
export function compressedConfig(modules: readonly QuantizedModule[], ignored: readonly string[]): object {
  const formats = new Map<string, QuantizedModule[]>();
  for (const one of modules) {
    const { bits, groupSize, symmetric } = one.format;
    const key = JSON.stringify([bits, groupSize, symmetric]);
    formats.set(key, [...(formats.get(key) ?? []), one]);
  }
  const bySize = [...formats.values()].sort((a, b) => b.length - a.length);
  const groups = bySize.map((members, i) => {
    const { bits, groupSize, symmetric } = (members[0] as QuantizedModule).format;
    const named = members.filter(({ isEmbedding }) => i > 0 || isEmbedding).map(({ module }) => module);
    return [
      `group_${i}`,
      {
        targets: i === 0 ? ["Linear", ...named] : named,
        weights: {
          num_bits: bits,
          type: "int",
          symmetric,
          strategy: "group",
          group_size: groupSize,
          dynamic: false,
        },
        input_activations: null,
        output_activations: null,
        format: "pack-quantized",
      },
    ];
  });
  return {
    quant_method: "compressed-tensors",
    format: "pack-quantized",
    quantization_status: "compressed",
    config_groups: Object.fromEntries(groups),
    ignore: ignored,
    kv_cache_scheme: null,
  };
}
