import type { IncomingMessage } from "node:http";
import { ApiError } from "./api-error.js";

/**
 * Bytes of a body beyond the limit that are read and thrown away before the refusal: clients that are still sending
 * would take an answer with a closed connection for a failed network.
 */
const drainedBytes = 64 * 1024 * 1024;

/**
 * The JSON body of a request.
 * @throws ApiError 400, 413, 415
 */
export async function readJson(request: IncomingMessage, maxBytes: number): Promise<unknown> {
  // A page of another site cannot send this type without asking first, which this server does not grant.
  const type = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json") {
    request.resume();
    throw new ApiError(
      415,
      `content-type is ${JSON.stringify(type ?? "missing")}, expected application/json`,
      {
        code: "unsupported_media_type",
      },
    );
  }
  const parts: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) parts.length = 0;
    else parts.push(chunk);
    if (size > maxBytes + drainedBytes) break;
  }
  if (size > maxBytes) {
    throw new ApiError(
      413,
      `the body has more than ${maxBytes} bytes, which is the most that this server reads`,
      {
        code: "request_too_large",
        headers: { connection: "close" },
      },
    );
  }
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(parts)));
  } catch (cause) {
    throw new ApiError(400, `the body is not valid JSON: ${(cause as Error).message.slice(0, 200)}`, {
      code: "invalid_json",
      cause,
    });
  }
}
