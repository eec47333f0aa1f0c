export { type ModelServer, type ServeOptions, serveModel } from "./serve-model.js";
export { isLocalHost, type RequestRecord } from "./service.js";
export { requestLimits } from "./text-request.js";
