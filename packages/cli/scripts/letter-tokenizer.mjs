/** tokenizer.json for made-up models of 256 tokens or more: one token per letter from a to z. */
export function letterTokenizer() {
  const vocab = Object.fromEntries(Array.from({ length: 256 }, (_, i) => [String.fromCharCode(i + 256), i]));
  for (let i = 97; i < 123; i++) {
    delete vocab[String.fromCharCode(i + 256)];
    vocab[String.fromCharCode(i)] = i;
  }
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: "1.0",
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab, merges: [] },
  };
}
