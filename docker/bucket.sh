#!/bin/sh
# The bucket, and a user who may use it and nothing else. Run once by the service `bucket`; again does no harm.
set -eu
mc alias set --quiet store http://store:9000 "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD"
mc mb --quiet --ignore-existing store/modelpress
cat > /tmp/policy.json <<POLICY
{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"], "Resource": ["arn:aws:s3:::modelpress"]},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
   "Resource": ["arn:aws:s3:::modelpress/*"]}]}
POLICY
mc admin policy create store modelpress /tmp/policy.json
mc admin user add store "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
mc admin policy attach store modelpress --user "$AWS_ACCESS_KEY_ID" || mc admin user info store "$AWS_ACCESS_KEY_ID" | grep -q modelpress
