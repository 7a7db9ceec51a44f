"use strict";

SwaggerUIBundle({
  // Relative: a proxy may serve this page below a prefix.
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null, // it would send the document to another host
});
