// node upload.mjs ENDPOINT KEY FILE [URL]: without URL it stops after the first chunk and prints the upload's address; with it, goes on there to the end.
import { createReadStream, statSync } from 'node:fs'
import { Upload } from 'tus-js-client'

const [endpoint, key, file, uploadUrl] = process.argv.slice(2)
const upload = new Upload(createReadStream(file), {
  endpoint,
  uploadUrl,
  chunkSize: 100000,
  uploadSize: statSync(file).size,
  retryDelays: [0, 200, 1000, 3000],
  headers: { Authorization: `Bearer ${key}` },
  metadata: { filename: 'model.safetensors', filetype: 'application/octet-stream' },
  onChunkComplete: async () => {
    if (uploadUrl) return
    await upload.abort()
    console.log(JSON.stringify({ url: upload.url }))
  },
  onSuccess: ({ lastResponse }) => console.log(JSON.stringify({ artifact: lastResponse.getHeader('Upload-Artifact') })),
  onError: (error) => {
    console.error(String(error))
    process.exit(1)
  },
})
upload.start()
