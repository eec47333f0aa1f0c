/** W_Oᵀ W_O of the columns `from` to `from + width` of the output projection, [width, width]. */
export function outputGram(output: Float32Array, columns: number, from: number, width: number): Float64Array {
  const gram = new Float64Array(width * width);
  for (let row = from; row < output.length; row += columns) {
    for (let i = 0; i < width; i++) {
      const a = output[row + i] as number;
      for (let j = 0, at = i * width; j <= i; j++)
        gram[at + j] = (gram[at + j] as number) + a * (output[row + j] as number);
    }
  }
  for (let i = 0; i < width; i++)
    for (let j = 0; j < i; j++) gram[j * width + i] = gram[i * width + j] as number;
  return gram;
}
