import type { AttentionCapabilities } from "@coppice/core";

export const attentionCapabilities: AttentionCapabilities = {
  spans: true,
  prefillMasks: true,
  decodePages: true,
};
