import { CoppiceError, checkQuantizedFormat, type QuantizedFormat } from "@coppice/core";
import { type ModelMatrix, moduleOf } from "./model-matrices.js";

/** How a matrix is quantized; undefined: it stays as it is. */
export type FormatOf = (matrix: ModelMatrix) => QuantizedFormat | undefined;

export interface UniformFormat extends QuantizedFormat {
  /**
   * Bits of the head, also of one that is tied to the embedding; "keep": it stays as it is. Default 8, whatever the others have:
   * predictions stay the same, and a head of floats is a quarter of what decoding takes at 4 bits.
   */
  readonly head?: QuantizedFormat["bits"] | "keep";
  /** Bits of the embedding; absent: it stays as it is, unless the head is tied to it. */
  readonly embedding?: QuantizedFormat["bits"];
}

/** Bits of heads that nothing is said about. */
const headBits = 8;

/**
 * One format for all matrices of the layers, and bits of their own for the ends of the model.
 * @throws COPPICE_USAGE from the returned function when a tied matrix should have two formats
 */
export function uniformFormat({ head, embedding, ...format }: UniformFormat): FormatOf {
  const withBits = (bits: QuantizedFormat["bits"] | "keep" | undefined) =>
    bits === undefined || bits === "keep" ? undefined : { ...format, bits };
  return ({ role, tied, weight }) => {
    if (role === "head") return withBits(head ?? headBits);
    if (role !== "embedding") return format;
    if (!tied) return withBits(embedding);
    if (head !== undefined && embedding !== undefined && head !== embedding) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `${weight.name} is embedding and head in one: it cannot have ${embedding} bits and ${head === "keep" ? "stay as it is" : `${head} bits`}`,
        { hint: "give bits for one of them", details: { tensor: weight.name } },
      );
    }
    return withBits(embedding ?? head ?? headBits);
  };
}

/** A matrix with the format that it gets. */
export interface FormattedMatrix extends ModelMatrix {
  readonly format: QuantizedFormat;
  /** Its module, as config.json names it. */
  readonly module: string;
}

/**
 * The matrices that are quantized.
 * @throws COPPICE_USAGE when a format does not fit its matrix or experts of a layer go different ways,
 * COPPICE_FAMILY_UNSUPPORTED when a matrix is no tensor of its own
 */
export function formatMatrices(matrices: readonly ModelMatrix[], formatOf: FormatOf): FormattedMatrix[] {
  const all = matrices.flatMap((matrix): FormattedMatrix[] => {
    const format = formatOf(matrix);
    if (!format) return [];
    const { name, shape, view, scales } = matrix.weight;
    if (scales) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `${name} is quantized already, as ${scales.format} ${matrix.weight.dtype}`,
        {
          hint: "give the checkpoint that it was made from",
          details: { tensor: name },
        },
      );
    }
    if (view || !name.endsWith(".weight")) {
      throw new CoppiceError(
        "COPPICE_FAMILY_UNSUPPORTED",
        `${name} is part of a tensor that holds several matrices; packed codes are stored one matrix per tensor`,
        { hint: "save the checkpoint with one tensor per expert", details: { tensor: name } },
      );
    }
    checkQuantizedFormat(format, shape[1] as number, name);
    return [{ ...matrix, format, module: moduleOf(matrix) }];
  });
  if (all.length === 0) throw new CoppiceError("COPPICE_USAGE", "no matrix of the model would be quantized");
  checkAlike(matrices, all);
  return all;
}

/** Readers of a layer's experts expect the same tensors of each: all packed or none, with zero points or without. */
function checkAlike(matrices: readonly ModelMatrix[], formatted: readonly FormattedMatrix[]): void {
  const formats = new Map(formatted.map(({ module, format }) => [module, format]));
  const first = new Map<string, string>();
  for (const matrix of matrices) {
    if (matrix.expert === undefined) continue;
    const format = formats.get(moduleOf(matrix));
    const kind = !format ? "not quantized" : format.symmetric ? "symmetric" : "asymmetric";
    const key = `${matrix.layer} ${matrix.role}`;
    const other = first.get(key) ?? kind;
    first.set(key, other);
    if (other === kind) continue;
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${matrix.weight.name} would be ${kind}, those of other experts of layer ${matrix.layer} ${other}`,
      {
        hint: "bits and groups may differ between experts, this may not",
        details: { tensor: matrix.weight.name },
      },
    );
  }
}
