import type { AttentionCapabilities } from "@coppice/core";

export const attentionCapabilities: AttentionCapabilities = {
  spans: true,
  prefillMasks: false,
  decodePages: false,
};
