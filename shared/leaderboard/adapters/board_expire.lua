-- Lets a board go at a time, if it stands at the sequence that the caller means. The time is kept
-- in the board, for the keys that later calls make.
--
-- Keys: the nine of the board. Arguments: sequence; the time, in ms since 1970.
if redis.call('HGET', KEYS[1], 'sequence') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'expires_at', ARGV[2])
let_go(KEYS, ARGV[2])
return 1
